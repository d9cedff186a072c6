"""One row to many: the JSON array of each document becomes rows of a child table; uuid keys."""

from models.engine.api import Copy, Expect, Insert, Migration, Reject, Source, derived_id


class Documents(Copy):
    """Each label of a document becomes a row."""

    source = Source("document", key="doc", reads=("labels",))
    rejects = (
        Reject("labels_no_array", "jsonb_typeof(s.labels) <> 'array'", "Labels are no array."),
    )
    inserts = (
        Insert(
            "labels",
            each="jsonb_array_elements_text(s.labels) WITH ORDINALITY AS l(value, n)",
            id=derived_id("l", part="l.n"),
            doc="s.doc",
            label="lower(l.value)",
        ),
    )
    accepts = "s.labels IS NULL OR left(s.labels::text, 1) = '['"
    expects = (
        Expect(
            "labels",
            "SELECT s.doc AS source_key, {id:l} || '.' || i.n AS id, s.doc,"
            " translate(s.labels ->> (i.n - 1), 'ABCDEFGHIJKLMNOPQRSTUVWXYZ',"
            "   'abcdefghijklmnopqrstuvwxyz') AS label"
            " FROM {documents} s CROSS JOIN LATERAL"
            " generate_series(1, CASE WHEN s.labels::text LIKE '[%'"
            "   THEN jsonb_array_length(s.labels) ELSE 0 END) AS i(n)",
        ),
    )


MIGRATION = Migration("labels", [Documents()])

"""Columns of a table are filled, and a JSON array of each row becomes rows of a child table.

MIGRATION=examples.profiles:MIGRATION. A profile's tags go into profile_tags, one row a tag.
"""

from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table

from models.engine import api

METADATA = MetaData()
Table("profiles", METADATA, Column("visibility", String), Column("tag_count", Integer))
OF_PROFILE = ForeignKey("profiles.id", ondelete="CASCADE")
Table(
    "profile_tags",
    METADATA,
    Column("id", String, primary_key=True),
    Column("profile_id", api.KeyOf("profile"), OF_PROFILE, nullable=False),
    Column("place", Integer, nullable=False),
    Column("tag", String, nullable=False),
)
GOOD = "s.tags IS NULL OR s.tags::text ~ '^\\['"
FILLED = """
SELECT s.id AS source_key, s.id,
  (ARRAY['private', 'public'])[1 + coalesce(s.is_public, false)::int] AS visibility,
  (SELECT count(*) FROM jsonb_path_query(s.tags, '$[*]')) AS tag_count
FROM {profiles} s WHERE s.tags IS NULL OR s.tags::text ~ '^\\['"""
TAGS = """
SELECT s.id AS source_key, {id:t} || '.' || i.n AS id, s.id AS profile_id, i.n AS place,
  regexp_replace(s.tags ->> (i.n - 1), '^ +| +$', '', 'g') AS tag
FROM {profiles} s CROSS JOIN LATERAL generate_series(1, CASE WHEN s.tags::text ~ '^\\['
  THEN jsonb_array_length(s.tags) ELSE 0 END) AS i(n)"""


class Profiles(api.Copy):
    """A profile gets a visibility and its number of tags; each tag becomes a row."""

    source = api.Source("profile", reads=("is_public", "tags"))
    rejects = (api.Reject("tags_no_array", "jsonb_typeof(s.tags) <> 'array'", "No array."),)
    fills = api.Fill(
        visibility="CASE WHEN s.is_public THEN 'public' ELSE 'private' END",
        tag_count="CASE WHEN s.tags IS NULL THEN 0 ELSE jsonb_array_length(s.tags) END",
    )
    inserts = (
        api.Insert(
            "profile_tags",
            each="jsonb_array_elements_text(s.tags) WITH ORDINALITY AS t(tag, place)",
            id=api.derived_id("t", part="t.place"),
            profile_id="s.id",
            place="t.place",
            tag="btrim(t.tag)",
        ),
    )
    accepts = GOOD
    expects = (api.Expect("profiles", FILLED), api.Expect("profile_tags", TAGS))
    examples = (
        api.Example(
            {"id": 1, "is_public": True, "tags": ["a", " b "]},
            {"profiles": {"visibility": "public", "tag_count": 2},
             "profile_tags": [{"place": 1, "tag": "a"}, {"place": 2, "tag": "b"}]},
        ),
        api.Example({"id": 1, "tags": []}, {"profiles": {"tag_count": 0}, "profile_tags": []}),
        api.Example({"id": 1, "tags": {"a": 1}}, "tags_no_array"),
    )  # fmt: skip


MIGRATION = api.Migration("profiles", [Profiles()], schema=METADATA)

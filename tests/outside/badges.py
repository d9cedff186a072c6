"""One row to one row: badges of members become awards. A parent that is not called user."""

from models.engine.api import Copy, Example, Expect, Insert, Migration, Reject, Source, derived_id

MEMBERS = Source("member", table="members", key="code", reads=("code",), judged_by=("code",))
BADGES = Source("badge", key="nr", parent="member", parent_column="holder")


class Badges(Copy):
    """Each badge becomes an award; its title is the badge's name in capitals."""

    source = BADGES
    rejects = (Reject("name_missing", "s.name IS NULL", "The name is null."),)
    inserts = (Insert("awards", id=derived_id("a"), holder="s.holder", title="upper(s.name)"),)
    expects = (
        Expect(
            "awards",
            "SELECT s.nr AS source_key, {id:a} AS id, s.holder,"
            " (SELECT string_agg(upper(c), '' ORDER BY n)"
            "  FROM regexp_split_to_table(s.name, '') WITH ORDINALITY AS x(c, n)) AS title"
            " FROM {badges} s WHERE s.name IS NOT NULL",
        ),
    )
    examples = (
        Example({"nr": 1, "holder": "m", "name": "chess"}, {"awards": {"title": "CHESS"}},
                beside={"members": [{"code": "m"}]}),
        Example({"nr": 2, "holder": "m", "name": None}, "name_missing",
                beside={"members": [{"code": "m"}]}),
        Example({"nr": 3, "holder": "nobody", "name": "go"}, "owner_missing"),
    )  # fmt: skip


MIGRATION = Migration("badges", [Badges()], sources=[MEMBERS, BADGES])

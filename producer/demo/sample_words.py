"""What generated legacy rows are made of: names in many scripts, preferences, project titles."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from random import Random
from typing import NamedTuple


class Names(NamedTuple):
    """People of one script: words as `native:ascii`, or `native` where the ASCII form follows."""

    given: str
    family: str
    family_first: bool = False
    separator: str = " "


AT = "2024-03-01 00:00:00"
NULL = "\\N"

NAMES = (
    Names(
        "Mary James Linda Robert Patricia John Jennifer Michael Barbara David Amara Darius Keisha",
        "Smith Johnson Williams Brown O'Connor Garcia Miller Davis D'Angelo Okafor Nguyen-Hall",
    ),
    Names(
        "José María Sofía Andrés Lucía Íñigo Begoña João Conceição Zoé François Hélène Benoît",
        "Muñoz García Peña Gutiérrez Ibáñez Gonçalves Magalhães Lefèvre Château Bérenger L'Hôpital",
    ),
    Names(
        "Jürgen Zoë Søren Åse Bjørn Þóra Łukasz Małgorzata Žofie Ondřej Ştefan Çağla Đorđe Ágnes",
        "Müller Großmann Ångström Løvås Guðmundsdóttir Wójcik Dvořák Țepeș Öztürk Šarić Kővári",
    ),
    Names(
        "Anh Ngọc Hải Thảo Đức Minh Quỳnh", "Nguyễn Trần Lê Phạm Võ Hoàng Đặng", family_first=True
    ),
    Names(
        "Γιώργος:giorgos Ελένη:eleni Νίκος:nikos Σοφία:sofia Οδυσσέας:odysseas",
        "Παπαδόπουλος:papadopoulos Βλάχου:vlachou Αγγελίδης:angelidis Οικονόμου:oikonomou",
    ),
    Names(
        "Иван:ivan Ольга:olga Юрий:yuriy Наталія:nataliia Ђорђе:djordje Щедрин:shchedrin",
        "Петренко:petrenko Ковальчук:kovalchuk Ковалёв:kovalyov Ћосић:cosic Їжакевич:yizhakevych",
    ),
    Names(
        "محمد:mohammed فاطمة:fatima يوسف:youssef زينب:zainab عبد‌الرحمن:abdelrahman",
        "الخطيب:alkhatib حداد:haddad المصري:almasri کاظمی:kazemi",
    ),
    Names(
        "נועה:noa איתי:itai שירה:shira יעקב:yaakov",
        "כהן:cohen לוי:levi פרידמן:friedman אברהמי:avrahami",
    ),
    Names(
        "आरव:aarav प्रिया:priya कृष्ण:krishna लक्ष्मी:lakshmi",
        "शर्मा:sharma सिंह:singh द्विवेदी:dwivedi पाटील:patil",
    ),
    Names("অনন্যা:ananya তাসনিম:tasnim", "চট্টোপাধ্যায়:chattopadhyay রহমান:rahman"),
    Names("கார்த்திக்:karthik மீனாட்சி:meenakshi", "சுப்பிரமணியம்:subramaniam முருகன்:murugan"),
    Names("สมชาย:somchai กัญญา:kanya", "ศรีสุวรรณ:srisuwan แก้วมณี:kaewmanee"),
    Names("Արամ:aram Անի:ani", "Հակոբյան:hakobyan Սարգսյան:sargsyan"),
    Names("გიორგი:giorgi ნინო:nino", "ბერიძე:beridze კაპანაძე:kapanadze"),
    Names("አበበ:abebe ሰላም:selam", "ተስፋዬ:tesfaye ገብረ:gebre"),
    Names(
        "伟:wei 秀英:xiuying 子涵:zihan 雨桐:yutong 𠮷:ji",
        "王:wang 李:li 欧阳:ouyang 陳:chen 龍:long",
        family_first=True,
        separator="",
    ),
    Names(
        "さくら:sakura 大輔:daisuke ひなた:hinata 美加子:mikako ケンジ:kenji",
        "佐藤:sato 髙橋:takahashi 長谷川:hasegawa 渡邉:watanabe",
        family_first=True,
    ),
    Names(
        "민준:minjun 서연:seoyeon 하늘:haneul 지우:jiwoo",
        "김:kim 이:lee 박:park 남궁:namgung",
        True,
        "",
    ),
)
"""The first entry is drawn half of the time."""

GPTS = (
    *("math_teacher", "math_tutor", "science_tutor", "history_tutor", "language_arts_tutor"),
    *("physical_ed_teacher", "writing_assistant", "study_skills_coach", "emotion_feedback"),
    *("grading_assistant", "admin_assistant", "lms_integration", "translation_localization"),
)
LEVELS = ("beginner", "intermediate", "advanced")
ACTIVITIES = (
    *("video", "reading", "quiz", "math", "café", "théâtre", "лабораторная", "音楽", "قراءة", "🏀"),
    "C:\\u0000\\new",
)
TITLES = (
    "Volcano model",
    "Reading club 5B",
    "Le voyage de l'été",
    "Ciencias: huerto escolar",
    "Фізика на кухні",
    "التاريخ المحلي",
    "俳句の会",
    "수학 경시대회",
    "गणित मेला",
    'Año nuevo — 100 % "énergie"',
    "Back\\slash & <b>tags</b>",
    "",
)
ROLES = (
    ["student"] * 42 + ["user"] * 8 + ["teacher"] * 7 + ["admin", "developer", "parent", None]
    + [" Teacher ", "Student", "ADMIN\t"]
)  # fmt: skip
STATUSES = ["active"] * 13 + ["paused"] * 2 + ["inactive"]
_NUMBERS = ("1.50", "1e2", "-0.0", "0", "12345678901234567890.123")


def field(value: str | None) -> str:
    """A value in COPY's text format."""
    if value is None:
        return NULL
    return (
        value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    )


def person(draw: Random) -> tuple[str, str]:
    """A full name in its own script and order, and an ASCII mailbox derived from it."""
    names: Names = NAMES[0] if draw.random() < 0.5 else draw.choice(NAMES[1:])
    given, given_ascii = _word(draw, names.given)
    family, family_ascii = _word(draw, names.family)
    parts = (family, given) if names.family_first else (given, family)
    shape: Callable[[str, str], str] = draw.choice(
        (
            lambda first, last: f"{first}.{last}",
            lambda first, last: f"{first[0]}{last}",
            lambda first, last: f"{last}_{first}",
            lambda first, last: f"{first}+{last}",
        )
    )
    return field(names.separator.join(parts)), shape(given_ascii, family_ascii)


def _word(draw: Random, words: str) -> tuple[str, str]:
    native, _, romanized = draw.choice(words.split()).partition(":")
    if not romanized:
        plain = native.lower().translate(str.maketrans("łøđ", "lod"))
        plain = plain.replace("þ", "th").replace("ß", "ss")
        romanized = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
    return native, romanized


def preferences(draw: Random) -> str | None:
    """A JSON object of some two hundred bytes; now and then an empty one, or SQL null."""
    kind = draw.random()
    if kind < 0.04:
        return None if kind < 0.02 else "{}"
    stored = json.dumps(
        {
            "default_difficulty": draw.choice(LEVELS),
            "preferred_activities": draw.sample(ACTIVITIES, 2),
            "notification_settings": {
                "email_notifications": draw.random() < 0.5,
                "push_notifications": draw.random() < 0.5,
                "quiet_hours": draw.choice((None, ["21:00", "06:30"])),
            },
            "rate_limit": draw.choice((50, 100, 200)),
        },
        ensure_ascii=draw.random() < 0.5,
    )
    return f'{stored[:-1]}, "pace": {draw.choice(_NUMBERS)}}}'


def usage(draw: Random) -> str:
    """The columns of a subscription from `version` to the end."""
    version = draw.choice(("1.0", "1.1", "2.0", NULL))
    last_used = draw.choice((AT, NULL))
    is_active = draw.choice(("t",) * 14 + ("f", NULL))
    return (
        f"{version}\t{draw.choice((50, 100, 200))}\t{draw.randrange(900)}\t{last_used}\t{AT}\t"
        f"{is_active}\t{AT}\t{AT}"
    )


def project(draw: Random, gpt: str | None) -> str:
    """The columns of a project from `name` to the end."""
    description = draw.choice((None, None, None, draw.choice(TITLES)))
    configuration = draw.choice(("{}", "{}", '{"color": "blue", "pinned": true}'))
    status = draw.choice(("active",) * 15 + ("archived",))
    is_template = draw.choice((NULL, NULL, "f", "f", "t"))
    return (
        f"{field(draw.choice(TITLES))}\t{field(description)}\t{field(gpt)}\t{configuration}\t"
        f"{status}\t{NULL}\t{is_template}\t{AT}\t{AT}"
    )

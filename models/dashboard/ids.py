"""The kinds of deterministic ids (`models.engine.keys`): a letter for what a row stands for."""

SUITE, SUBSCRIPTION_TOOL, PROJECT_TOOL = "s", "t", "p"
SUBSCRIPTION_USAGE, PROJECT_USAGE = "u", "v"
OPENING, GRANT = "o", "g"

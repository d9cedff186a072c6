"""What a task message must look like: those that our producer, chords and redeliveries write.

What is checked is what goes on: keys that are not named here are left out, whoever wrote them.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from producer.broker.queue import ADVANCE
from worker.tasks import BATCH_TASKS

# Two ids and the names around them take 1,500 bytes; nothing of ours grows with the data.
LARGEST_BYTES = 8192


class Refused(Exception):
    """A message that is none of ours; names the place and the rule, never what stood there."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


def _known(task: str) -> str:
    if task != ADVANCE and task not in BATCH_TASKS:
        raise PydanticCustomError("unknown_task", "Not one of our tasks")
    return task


_UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
Id = Annotated[str, StringConstraints(pattern=f"^{_UUID}$")]
IdOrBlank = Annotated[str, StringConstraints(pattern=f"^({_UUID})?$")]
RunId = Annotated[str, StringConstraints(pattern="^[0-9a-z-]{1,40}$")]
BatchId = Annotated[int, Field(ge=1, le=2**63 - 1)]
Note = Annotated[str, StringConstraints(max_length=1000)]
Nothing = Annotated[dict[str, Any], Field(max_length=0)]
OneOrTwo = Annotated[int, Field(ge=1, le=2)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class Options(_Part):
    """How a chord publishes its body."""

    queue: Literal["migration.control"]
    task_id: Id
    reply_to: IdOrBlank | None = None
    group_id: Id | None = None
    root_id: Id | None = None
    parent_id: Id | None = None


class Callback(_Part):  # type: ignore[no-redef]  # Celery calls a field `kwargs`.
    """A chord's body: the task that opens what comes next, and no other."""

    task: Literal["migration.advance"]
    args: tuple[RunId]
    kwargs: Nothing
    options: Options
    subtask_type: None = None
    immutable: Literal[True]


class Embed(_Part):
    """What is to follow the task."""

    callbacks: None = None
    errbacks: None = None
    chain: None = None
    chord: Callback | None = None


class BatchBody(RootModel[tuple[tuple[RunId, BatchId], Nothing, Embed]]):
    """Arguments of a batch's task."""

    model_config = ConfigDict(strict=True, frozen=True)


class AdvanceBody(RootModel[tuple[tuple[RunId], Nothing, Embed]]):
    """Arguments of `migration.advance`; a chord adds no results to them, as it is immutable."""

    model_config = ConfigDict(strict=True, frozen=True)


class Headers(_Part):
    """Celery's headers. Our tasks start at once, never expire, and are never retried by Celery."""

    lang: Literal["py"] = "py"
    task: Annotated[str, AfterValidator(_known)]
    id: Id
    shadow: None = None
    eta: None = None
    expires: None = None
    group: Id | None = None
    group_index: Annotated[int, Field(ge=0, le=2**31)] | None = None
    retries: Literal[0] = 0
    timelimit: tuple[int | None, None] = (None, None)
    root_id: Id | None = None
    parent_id: Id | None = None
    argsrepr: Note = ""
    kwargsrepr: Note = ""
    origin: Note = ""
    ignore_result: bool | None = None
    replaced_task_nesting: Literal[0] = 0
    stamped_headers: None = None
    stamps: Nothing = Field(default_factory=dict)
    compression: None = None
    redelivered: bool = False

    @field_validator("timelimit")
    @classmethod
    def _is_the_tasks_own(
        cls, limit: tuple[int | None, None], info: ValidationInfo
    ) -> tuple[int | None, None]:
        # A limit in a message goes before the task's own.
        if limit[0] not in (None, BATCH_TASKS.get(info.data.get("task", ""))):
            raise PydanticCustomError("foreign_limit", "Not the task's own limit")
        return limit


class DeliveryInfo(_Part):
    """Where a message that comes back is put."""

    exchange: Literal[""]
    routing_key: Note
    redelivered: bool = False


class Properties(_Part):
    """Kombu's properties."""

    correlation_id: Id | None = None
    reply_to: IdOrBlank | None = None
    delivery_mode: OneOrTwo = 2
    delivery_info: DeliveryInfo
    priority: Annotated[int, Field(ge=0, le=9)] = 0
    body_encoding: Literal["base64"]
    delivery_tag: Id


class Envelope(_Part):
    """A message as it lies in a list."""

    body: str
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")
    content_type: Literal["application/json"] = Field(alias="content-type")
    headers: Headers
    properties: Properties


def admit(queue: str, item: bytes) -> bytes:
    """The message, written anew from what was checked; raises Refused for any that is not ours."""
    if len(item) > LARGEST_BYTES:
        raise Refused("message", f"Longer than {LARGEST_BYTES} bytes")
    try:
        envelope = Envelope.model_validate_json(item)
    except ValidationError as error:
        raise _refusal("message", error) from None
    if envelope.properties.delivery_info.routing_key != queue:
        raise Refused("properties.delivery_info.routing_key", "Not the queue that it came on")
    shape = AdvanceBody if envelope.headers.task == ADVANCE else BatchBody
    try:
        body = shape.model_validate_json(base64.b64decode(envelope.body, validate=True))
    except ValidationError as error:
        raise _refusal("body", error) from None
    except ValueError:
        raise Refused("body", "Not base64") from None
    written = base64.b64encode(_written(body)).decode()
    return _written(envelope.model_copy(update={"body": written}))


def _written(checked: BaseModel) -> bytes:
    return checked.model_dump_json(by_alias=True, exclude_unset=True).encode()


def _refusal(part: str, error: ValidationError) -> Refused:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    names = [str(name) for name in first["loc"]]
    if part == "body" or not names:
        names.insert(0, part)
    return Refused(".".join(names), first["msg"])

from renderjobs.models.approvals import JobApproval
from renderjobs.models.eas import (
    EasConsumer,
    EasDelivery,
    EasEdition,
    EasFrame,
    EasQueue,
    EasService,
    QueueKind,
)
from renderjobs.models.images import Attempt, Claim, RenderImage
from renderjobs.models.imports import (
    DirectoryImport,
    FileOrigin,
    FileState,
    ImportedNot,
    ImportState,
    TeamFile,
)
from renderjobs.models.inputs import ImageAttachment, InputFile
from renderjobs.models.jobs import IdempotencyRecord, JobEvent, RenderJob
from renderjobs.models.profiles import OptionProfile
from renderjobs.models.prompts import PromptExpansion
from renderjobs.models.reviews import ImageReview
from renderjobs.models.safety import SafetyPolicy
from renderjobs.models.schedules import BatchSchedule, BatchTemplate, ScheduledRun, TemplateVersion
from renderjobs.models.scripts import ScriptCall

__all__ = [
    "Attempt",
    "BatchSchedule",
    "BatchTemplate",
    "Claim",
    "DirectoryImport",
    "EasConsumer",
    "EasDelivery",
    "EasEdition",
    "EasFrame",
    "EasQueue",
    "EasService",
    "FileOrigin",
    "FileState",
    "IdempotencyRecord",
    "ImageAttachment",
    "ImageReview",
    "ImportState",
    "ImportedNot",
    "InputFile",
    "JobApproval",
    "JobEvent",
    "OptionProfile",
    "PromptExpansion",
    "QueueKind",
    "RenderImage",
    "RenderJob",
    "SafetyPolicy",
    "ScheduledRun",
    "ScriptCall",
    "TeamFile",
    "TemplateVersion",
]

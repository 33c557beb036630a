"""The frozen records that everything else passes around; their invariants are checked when they are made.

They are msgspec structs: one declaration gives the type, the JSON form in the journal and its validation.

    recipes.py   what is to be trained, and who says so
    stages.py    what the stages of a trial leave behind
    scores.py    what was measured
    studies.py   trials, and what a study consists of
"""

from agent.records.recipes import Lesson, Mode, Proposal, Recipe, Scalar, Usage, Value
from agent.records.scores import Comparison, FileRef, Mistake, Question, Score, Scores, Split, Verdict
from agent.records.stages import (
    HOST_STAGES,
    REFLECT,
    STAGES,
    Checked,
    Checkpoint,
    Failure,
    FailureKind,
    Loss,
    MiniRun,
    Stage,
    TrainingData,
)
from agent.records.studies import (
    SEARCHED,
    Confirmation,
    Contamination,
    History,
    Identity,
    Sealed,
    StudyReport,
    Trial,
    estimate,
)

__all__ = [
    "HOST_STAGES",
    "REFLECT",
    "SEARCHED",
    "STAGES",
    "Checked",
    "Checkpoint",
    "Comparison",
    "Confirmation",
    "Contamination",
    "Failure",
    "FailureKind",
    "FileRef",
    "History",
    "Identity",
    "Lesson",
    "Loss",
    "MiniRun",
    "Mistake",
    "Mode",
    "Proposal",
    "Question",
    "Recipe",
    "Scalar",
    "Score",
    "Scores",
    "Sealed",
    "Split",
    "Stage",
    "StudyReport",
    "TrainingData",
    "Trial",
    "Usage",
    "Value",
    "Verdict",
    "estimate",
]

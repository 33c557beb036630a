"""The benchmarks with a short name, one row each: engine, pinned config, data, verdicts, answer format, categories.

OpenCompass rows name exact config modules (the hash in a name is that of its prompt), one for each number of few-shot
examples; the lock in docker/bench pins the version that they are read from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from scenarios.finetune.rows import Row

Engine = Literal["lm_eval", "opencompass"]
Skill = Literal["math", "code", "general"]
Convert = Callable[[Row], Row]
"""A row as the hub has it -> a row as it is laid under benchmarks/: texts, named as `Entry.columns` says."""

JUDGED = ("A", "B")
"""The verdicts of OpenCompass' own judge prompts: correct first, then incorrect."""
BOXED = r"\\boxed\s*\{"
TELLING: dict[Skill, str] = {  # what in a name or tag says what it is about
    "math": r"math|gsm\d|aime|arithmetic|algebra|geometry|olympiad|svamp",
    "code": r"(?<!en)(?<!de)(?:code|coding)|programming|python|humaneval|mbpp",
}


@dataclass(frozen=True)
class Source:
    """Where a benchmark is downloaded from.

    Attributes:
        dataset: Id on the hub. subset: directory in it, where it has several.
        test, train: What the names of the files with the questions, and with the few-shot examples, hold; "" for any
            name, None where no examples are drawn from the data (some configs have theirs in the prompt).
        convert: What makes a row of ours from one of theirs.
    """

    dataset: str
    subset: str = ""
    test: str = "test"
    train: str | None = None
    convert: Convert = dict


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A registry row: everything about a benchmark except its rows.

    Attributes:
        description, answer_format: For people and for prompts. skill: what it asks for.
        fewshots: Settings at which the base is scored, zero first.
        source: None for one that comes with a demo data set.
        data: Directory under benchmarks/; the short name unless said otherwise.
        columns: What each row of its data has, as texts.
        category: The column by which the halves are stratified.
        verdicts: What its judge may answer, the one for "correct" first; none where no judge is asked.
        modules: OpenCompass: config module below opencompass.configs.datasets, by number of few-shot examples.
        layout: OpenCompass: how its data is laid out for it (`compass.LAYOUTS`).
        form: OpenCompass: what an answer in the form asked for matches, where a judge and no extraction decides.
        task, metric, filter: lm-eval: its task, which of its numbers is the score, and after which of its filters.
        generation: Decoding settings that replace the config's own.
    """

    engine: Engine
    description: str
    answer_format: str
    skill: Skill = "general"
    fewshots: tuple[int, ...] = (0,)
    source: Source | None
    data: str = ""
    columns: tuple[str, ...] = ("question", "answer")
    category: str | None = None
    verdicts: tuple[str, ...] = ()
    modules: Mapping[int, str] = field(default_factory=dict)
    layout: str = ""
    form: str = ""
    task: dict[str, Any] = field(default_factory=dict)
    metric: str = "accuracy"
    filter: str = ""
    generation: dict[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, str]:
        """The files of its data, without .jsonl: by split, what their names on the hub hold."""
        if self.source is None:
            return {}
        return {"test": self.source.test} | ({"train": self.source.train} if self.source.train else {})


# Rows of the hub


def _problem(row: Row) -> Row:
    return {"question": row.get("problem", row.get("question")), "answer": _text(row.get("answer"))}


def _math(row: Row) -> Row:
    return {**_problem(row), "category": row.get("subject")}


def _choices(row: Row) -> Row:
    """MMLU: four choices in a list, and the index of the right one."""
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or len(choices) != 4 or not isinstance(answer, int) or answer not in range(4):
        return row  # refused later, by its columns
    letters = dict(zip("ABCD", map(str, choices), strict=True))
    return {"question": row.get("question"), **letters, "answer": "ABCD"[answer], "category": row.get("subject")}


def _text(value: object) -> object:
    return str(value) if isinstance(value, int | float) else value


BOXING = 'asked as "{question}\\nPlease reason step by step, and put your final answer within \\boxed{}."'
AIME = 'a whole number from 0 to 999 within \\boxed{}; asked as "{question}" and then'
REGISTRY: dict[str, Entry] = {
    "aime25": Entry(
        engine="opencompass",
        skill="math",
        description="30 competition problems (American Invitational Mathematics Examination 2025)",
        answer_format=f'{AIME} "Remember to put your final answer within \\boxed{{}}."; a judge compares it',
        source=Source("opencompass/AIME2025", test="", convert=_problem),
        modules={0: "aime2025.aime2025_llmjudge_gen_5e9f4f"},
        layout="aime25",
        verdicts=JUDGED,
        form=BOXED,
    ),
    "aime24": Entry(
        engine="opencompass",
        skill="math",
        description="30 competition problems (American Invitational Mathematics Examination 2024)",
        answer_format=f'{AIME} "Please reason step by step, and put your final answer within \\boxed{{}}."',
        source=Source("HuggingFaceH4/aime_2024", test="train", convert=_problem),
        modules={0: "aime2024.aime2024_gen_17d799"},
        layout="aime24",
    ),
    "gsm8k": Entry(
        engine="opencompass",
        skill="math",
        description="grade-school word problems that take two to eight steps of arithmetic (GSM8K, Cobbe et al. 2021)",
        answer_format=f"{BOXING}; the last number in the reply, without thousands separators, is taken as the answer",
        fewshots=(0, 4),
        source=Source("openai/gsm8k", "main"),
        modules={0: "gsm8k.gsm8k_0shot_gen_a58960", 4: "gsm8k.gsm8k_gen_1d7fe4"},
        layout="gsm8k",
    ),
    "math": Entry(
        engine="opencompass",
        skill="math",
        description="500 competition problems of seven subjects (MATH-500, Lightman et al. 2023)",
        answer_format=f"{BOXING}; the boxed expression must equal the reference mathematically",
        source=Source("HuggingFaceH4/MATH-500", convert=_math),
        category="category",
        modules={0: "math.math_prm800k_500_0shot_cot_gen_11c4b5"},
        layout="math",
    ),
    "mmlu": Entry(
        engine="opencompass",
        description="14,042 multiple-choice questions of 57 subjects (MMLU, Hendrycks et al. 2021)",
        answer_format='a question with the choices A) to D); the last line of the reply must be "ANSWER: <letter>"',
        fewshots=(0, 5),
        source=Source("cais/mmlu", "all", train="dev", convert=_choices),
        columns=("question", "A", "B", "C", "D", "answer", "category"),
        category="category",
        modules={0: "mmlu.mmlu_openai_simple_evals_gen_b618ea", 5: "mmlu.mmlu_gen_4d595a"},
        layout="mmlu",
        generation={"max_gen_toks": 2048},
    ),
    "lm_eval:gsm8k": Entry(
        engine="lm_eval",
        skill="math",
        description="grade-school word problems that take two to eight steps of arithmetic (GSM8K, Cobbe et al. 2021)",
        answer_format='asked as "Question: {question}\\nAnswer:"; the last number in the reply is taken as the answer '
        '(the reference solutions reason first and end with "#### <number>")',
        fewshots=(0, 5),
        source=Source("openai/gsm8k", "main", train="train"),
        data="gsm8k",
        task={"shipped": "gsm8k/gsm8k.yaml"},
        metric="exact_match",
        filter="flexible-extract",
        generation={"max_gen_toks": 512},
    ),
    "reverse": Entry(
        engine="lm_eval",
        description="the demo: reverse eight digits",
        answer_format="the digits in reverse order and nothing else",
        source=None,
        # As measured, these settings give what direct greedy decoding gives, on 200 of 200 questions. A description,
        # a prefix or one trailing space would not.
        task={
            "config": {
                "task": "reverse",
                "output_type": "generate_until",
                "doc_to_text": "{{question}}",
                "doc_to_target": "{{answer}}",
                "generation_kwargs": {"until": ["<|im_end|>"]},
                "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            }
        },
        metric="exact_match",
        filter="none",
        generation={"max_gen_toks": 16},
    ),
}

EXECUTED = ("humaneval", "mbpp")
"""Benchmarks that are scored by running code which the model wrote; no job does that here."""


def registered(benchmark: str) -> Entry | None:
    """The row of a benchmark, by its short name or as files bear it ("lm_eval-gsm8k")."""
    return next((entry for name, entry in REGISTRY.items() if benchmark in (name, name.replace(":", "-"))), None)


def skill_of(benchmark: str) -> Skill:
    """What a benchmark asks for: as the registry has it, else as its name says."""
    entry = registered(benchmark)
    return entry.skill if entry else next(iter(skills_in(benchmark)), "general")


def skills_in(words: str) -> list[Skill]:
    """What a name or a tag says that it is about; nothing where it does not say."""
    return [skill for skill, telling in TELLING.items() if re.search(telling, words.lower())]

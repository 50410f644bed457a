"""One scored answer of one model to one prompt, and which answers may be learned from.

An answer knows its prompt only by id, so that a score can never land on another prompt's answer by position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from alignment.records import Record

Source = Literal["newest", "previous"]


@dataclass(frozen=True)
class Answer:
    """A generated answer and its scores.

    Attributes:
        id: the prompt's row id.
        model: which of the stage's models said it.
        index: which draw of that model, from 0.
        finished: it ended by itself; False when max_new_tokens cut it.
        score: what selection goes by; NaN when it could not be had.
        function_score, model_score, judge_score: its parts, None where not asked for; the judge's also where it could
            not be read.
        draw: the sampling parameters it was drawn with.
        usage: what it took at an endpoint, by `Usage`'s names; None of a model that computes here.
        judged: what the judge said of it, or how much it won of what was compared; None without one.
    """

    id: str
    model: Source
    index: int
    text: str
    tokens: int
    finished: bool
    score: float
    function_score: float | None = None
    model_score: float | None = None
    draw: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    judge_score: float | None = None
    judged: dict[str, Any] | None = None

    @property
    def normal(self) -> str:
        """The text without outer blanks: answers equal in this are the same answer. Indentation tells answers apart."""
        return self.text.strip()

    @property
    def scored(self) -> bool:
        """May be the rejected side: it says something and its score is a number. Being cut is no obstacle there."""
        return bool(self.normal) and math.isfinite(self.score)

    @property
    def learnable(self) -> bool:
        """May be a best answer or a chosen side: also ended by itself, or a model would learn not to stop."""
        return self.scored and self.finished

    def to_record(self, prompt: Record) -> Record:
        """The answer as a prompt-completion row with id ID-MODEL-INDEX."""
        known = {"function_score": self.function_score, "model_score": self.model_score,
                 "judge_score": self.judge_score}
        meta: dict[str, Any] = {
            **prompt.meta, "prompt_id": self.id, "model": self.model, "finished": self.finished, "draw": self.draw,
            **({} if self.usage is None else {"usage": self.usage}),
            **({} if self.judged is None else {"judged": self.judged}),
            # JSON has no NaN; a missing score is null.
            **{k: _number(v) for k, v in {"score": self.score, **known}.items() if k == "score" or v is not None},
        }
        return Record(id=f"{self.id}-{self.model}-{self.index}", type="prompt-completion", prompt=prompt.prompt,
                      completion=self.text, meta=meta)


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

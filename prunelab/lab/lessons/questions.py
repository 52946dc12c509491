"""Questions of the course's own to a language model: facts, arithmetic, grammar; one of four options is right.

The options are never shown, each is scored by its likelihood after the question: so they have no position. Towns and
verb forms are each right once and wrong three times, so who only likes some words more is right by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...core import mode

COUNTRIES = """
France Paris Europe, Japan Tokyo Asia, Egypt Cairo Africa, Peru Lima America, Germany Berlin Europe,
China Beijing Asia, Kenya Nairobi Africa, Cuba Havana America, Italy Rome Europe, India Delhi Asia,
Ghana Accra Africa, Chile Santiago America, Spain Madrid Europe, Iran Tehran Asia, Senegal Dakar Africa,
Canada Ottawa America, Greece Athens Europe, Iraq Baghdad Asia, Libya Tripoli Africa, Argentina Buenos_Aires America,
Austria Vienna Europe, Thailand Bangkok Asia, Morocco Rabat Africa, Venezuela Caracas America, Poland Warsaw Europe,
Vietnam Hanoi Asia, Sudan Khartoum Africa, Colombia Bogotá America, Hungary Budapest Europe, Nepal Kathmandu Asia,
Uganda Kampala Africa, Ecuador Quito America, Portugal Lisbon Europe, Afghanistan Kabul Asia, Zimbabwe Harare Africa,
Jamaica Kingston America, Norway Oslo Europe, Syria Damascus Asia, Somalia Mogadishu Africa,
Haiti Port-au-Prince America, Ireland Dublin Europe, Lebanon Beirut Asia, Angola Luanda Africa,
Honduras Tegucigalpa America, Denmark Copenhagen Europe, Jordan Amman Asia, Tunisia Tunis Africa,
Nicaragua Managua America, Finland Helsinki Europe, Philippines Manila Asia, Ethiopia Addis_Ababa Africa,
Paraguay Asunción America, Sweden Stockholm Europe, Bangladesh Dhaka Asia, Rwanda Kigali Africa,
Uruguay Montevideo America
"""
KINDS = {
    "fish": "salmon trout shark herring tuna carp pike eel cod sardine",
    "bird": "robin sparrow eagle swan owl duck pigeon crow parrot hawk",
    "tree": "oak birch willow pine maple beech cedar elm spruce poplar",
    "insect": "beetle wasp moth mosquito cricket butterfly dragonfly flea grasshopper termite",
    "metal": "iron copper silver zinc nickel aluminum titanium lead tin platinum",
    "fruit": "pear plum cherry banana peach mango apricot grape melon lemon",
}
VERBS = """
eat ate eaten eating, write wrote written writing, drive drove driven driving, take took taken taking,
give gave given giving, see saw seen seeing, go went gone going, fall fell fallen falling,
break broke broken breaking, speak spoke spoken speaking, choose chose chosen choosing, freeze froze frozen freezing,
steal stole stolen stealing, wake woke woken waking, hide hid hidden hiding, ride rode ridden riding,
rise rose risen rising, draw drew drawn drawing, fly flew flown flying, grow grew grown growing,
know knew known knowing, throw threw thrown throwing, blow blew blown blowing, sing sang sung singing,
ring rang rung ringing, drink drank drunk drinking, swim swam swum swimming, begin began begun beginning,
shake shook shaken shaking, bite bit bitten biting, forget forgot forgotten forgetting, wear wore worn wearing,
tear tore torn tearing, swear swore sworn swearing, shrink shrank shrunk shrinking, sink sank sunk sinking,
do did done doing, forgive forgave forgiven forgiving, arise arose arisen arising, weave wove woven weaving
"""
FRAMES = ("Tomorrow my sister will", "Last week my sister", "My sister has already", "My sister could not stop")
BATCH = 16  # texts at once
SHIFTS = (0, 13, 27, 41)  # in the list of 56 capitals: each is right once, and wrong three times


@dataclass(frozen=True)
class Question:
    """What a text begins with, and four ways to go on; the first is right."""

    kind: str
    text: str
    options: tuple[str, ...]


def questions() -> list[Question]:
    """All of them: facts, arithmetic, grammar."""
    return [*_facts(), *_sums(), *_forms()]


def _facts() -> list[Question]:
    rows = [[word.replace("_", " ") for word in row.split()] for row in COUNTRIES.split(",")]
    continents, kinds, found = list(dict.fromkeys(row[2] for row in rows)), list(KINDS), []
    for i, (country, _, continent) in enumerate(rows):
        towns = [rows[(i + shift) % len(rows)][1] for shift in SHIFTS]
        found.append(_question("facts", f"The capital of {country} is the city of", towns, towns[0]))
        found.append(_question("facts", f"The country of {country} lies in", continents, continent))
    for i, kind in enumerate(kinds):
        for j, thing in enumerate(KINDS[kind].split()):
            options = [kind, *(kinds[(i + 1 + (j + k) % 5) % 6] for k in range(3))]
            found.append(_question("facts", f"The {thing} is a kind of", options, kind))
    return found


def _sums() -> list[Question]:
    """The options are four numbers in a row, of two digits: each place is the right one as often."""
    said = [(f"{a} + {b} =", a + b) for a in range(12, 20) for b in range(2, 10)]
    said += [(f"{a + b} - {b} =", a) for a in range(13, 20) for b in range(2, 10)]
    said += [(f"{a} * {b} =", a * b) for a in range(3, 10) for b in range(3, 10) if a * b > 12]
    found = []
    for i, (text, right) in enumerate(said):
        low = right - i % 4
        found.append(_question("arithmetic", text, [str(n) for n in range(low, low + 4)], str(right)))
    return found


def _forms() -> list[Question]:
    """Each of a verb's four forms is the right one after one of four beginnings."""
    found = []
    for row in VERBS.split(","):
        forms = row.split()
        found += [_question("grammar", frame, forms, form) for frame, form in zip(FRAMES, forms, strict=True)]
    return found


def _question(kind: str, text: str, options: list[str], right: str) -> Question:
    return Question(kind, text, (right, *(o for o in options if o != right)))


def answered(model: Any, tokenizer: Any, asked: Sequence[Question], blind: str = "") -> dict[str, str]:
    """Of each kind, a "1" for each question whose right option is the likeliest, else a "0".

    An option's likelihood is that of all its tokens after the question's text, or after `blind` in its place.
    """
    found = likelihoods(model, tokenizer, {(blind or q.text, option) for q in asked for option in q.options})
    told: dict[str, str] = {}
    for q in asked:
        right, *others = (found[blind or q.text, option] for option in q.options)
        told[q.kind] = told.get(q.kind, "") + str(int(right > max(others)))
    return told


def likelihoods(model: Any, tokenizer: Any, pairs: set[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """The log-probability of each option after its text, in nats; texts of one length go through the model together."""
    asked: dict[int, dict[tuple[int, ...], list[Any]]] = {}  # by length: what the model reads, and what could follow
    for text, option in sorted(pairs):
        first, last = (tokenizer.encode(part, add_special_tokens=False, verbose=False) for part in (text, f" {option}"))
        seen = (*first, *last[:-1])  # options of one token read the same
        asked.setdefault(len(seen), {}).setdefault(seen, []).append(((text, option), last))
    found = {}
    with mode(model, training=False), torch.no_grad():
        for same in asked.values():
            for some in torch.tensor(list(same)).split(BATCH):
                rows = [same[tuple(row)] for row in some.tolist()]
                longest = max(len(last) for row in rows for _, last in row)
                hidden = model.model(some, use_cache=False).last_hidden_state[:, -longest:]
                for row, said in zip(rows, model.lm_head(hidden).log_softmax(-1), strict=True):
                    for pair, last in row:
                        found[pair] = float(said[-len(last) :].gather(1, torch.tensor(last)[:, None]).sum())
    return found

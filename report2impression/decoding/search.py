"""Which token comes next: greedy and beam search as states over places, without a model.

A place is one report being decoded; it has `width` rows (beams). All places share the columns of
one buffer (cache.py): a place that began at column f has generated c - f tokens before column
c. The rules are those of transformers' `generate` (greedy; `_beam_search` with early_stopping =
False), place by place, so that places can come and go.

P places, W beams, V vocabulary, C columns.
"""

import math
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from report2impression.decoding.options import SearchConfig
from report2impression.decoding.special import Special
from report2impression.decoding.vocabulary import Vocabulary, forbid, largest

Device = torch.device

NEVER = -1.0e9  # transformers' score of what is not allowed; finite, so that sums stay ordered


class Result(NamedTuple):
    """What one report's search came to."""

    ids: list[int]  # up to and without end-of-sequence
    score: float | None  # of beams
    confidence: float | None  # exp(mean log-probability of its tokens), its end's too


class Search(Protocol):
    """The state of P places."""

    width: int

    @property
    def finished(self) -> Tensor: ...  # (P,) bool

    def begin(self, places: Tensor) -> None:
        """New reports in these places."""

    def advance(
        self, hidden: Tensor, vocabulary: Vocabulary, age: Tensor, column: int
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states (P * W, D) before `column`, how many tokens were generated before it (P,)
        -> the token of each row (P * W,), and the row whose past it goes on from (none: its own).
        """

    def results(self, places: Tensor, first: Tensor) -> list[Result]:
        """What finished places generated; `first` are the columns where they began."""

    def keep(self, places: Tensor) -> None:
        """Forget all other places."""

    def shift(self, by: int) -> None:
        """All columns move `by` to the front."""


def make_search(
    config: SearchConfig,
    places: int,
    columns: int,
    special: Special,
    device: torch.device,
    *,
    scored: bool = False,
) -> Search:
    """`scored`: with the confidence of each result, which greedy search does not need to know."""
    if config.num_beams > 1:
        return Beams(config, places, columns, special, device)
    return Greedy(config, places, columns, special, device, scored=scored)


class _State:
    """Moving places about is the same for both searches."""

    state: dict[str, Tensor]  # each has P as its first dimension
    by_column = ("tokens", "best")  # and these have C as their last

    def __init__(self, config: SearchConfig, special: Special, device: torch.device) -> None:
        self.config, self.special, self.pad = config, special, special.pad
        self.ends = torch.tensor(special.ends, device=device)

    def keep(self, places: Tensor) -> None:
        self.state = {name: tensor[places] for name, tensor in self.state.items()}

    def shift(self, by: int) -> None:
        """Columns move `by` to the front."""
        for name in self.by_column:
            if name in self.state:
                self.state[name] = self.state[name].roll(-by, -1)

    @property
    def finished(self) -> Tensor:
        return self.state["finished"]

    def _cut(self, tokens: Tensor, first: Tensor) -> list[list[int]]:
        """Rows (n, C) of the buffer -> ids of each, from its first column on."""
        limit, rows = self.config.max_new_tokens, zip(tokens.tolist(), first.tolist(), strict=True)
        return [until(row[start : start + limit], self.special) for row, start in rows]

    def _restrict(self, scores: Tensor, tokens: Tensor, age: Tensor, column: int) -> Tensor:
        """Scores (P * W, V) with what may not come next at -inf; changed in place.

        tokens (P, W, C) are the buffer, of which `age` (P,) columns before `column` are written.
        """
        width, config = tokens.shape[1], self.config
        if config.min_new_tokens:
            forbid(scores, (age < config.min_new_tokens).repeat_interleave(width), self.ends)
        n = config.no_repeat_ngram
        if n and column + 1 >= n:
            # The start token is part of the first n-gram: it stands before what was written.
            begun = (column - age).repeat_interleave(width)[:, None]
            past = F.pad(tokens[..., :column].flatten(0, 1), (1, 0))  # (R, column + 1)
            past.scatter_(1, begun, self.special.start)
            grams = past.unfold(1, n, 1)  # (R, column - n + 2, n)
            last = past[:, column - n + 2 :]
            repeats = (grams[..., : n - 1] == last[:, None]).all(-1)
            places = torch.arange(repeats.shape[1], device=past.device)
            repeats &= places >= begun
            repeats &= (age >= n - 1).repeat_interleave(width)[:, None]
            rows, where = repeats.nonzero(as_tuple=True)  # waits for the device
            scores[rows, grams[rows, where, n - 1]] = float("-inf")
        return scores


class Greedy(_State):
    """The most probable token, until end-of-sequence."""

    width = 1

    def __init__(
        self,
        config: SearchConfig,
        places: int,
        columns: int,
        special: Special,
        device: torch.device,
        *,
        scored: bool = False,
    ) -> None:
        super().__init__(config, special, device)
        self.scored = scored
        self.state = {
            "tokens": torch.full((places, columns), self.pad, device=device),
            "finished": torch.ones(places, dtype=torch.bool, device=device),
            "log_p": torch.zeros(places, dtype=torch.float64, device=device),
            "length": torch.zeros(places, device=device),
        }

    def begin(self, places: Tensor) -> None:
        self.state["tokens"][places] = self.pad
        for name in ("finished", "log_p", "length"):
            self.state[name][places] = 0

    def advance(
        self, hidden: Tensor, vocabulary: Vocabulary, age: Tensor, column: int
    ) -> tuple[Tensor, None]:
        state = self.state
        token = self._next(hidden, vocabulary, age, column)
        if self.scored:
            logits = vocabulary.logits(hidden).float()
            log_p = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1)
            state["log_p"] += log_p.masked_fill(state["finished"], 0)
            state["length"] += ~state["finished"]
        token = token.masked_fill_(state["finished"], self.pad)
        state["tokens"][:, column] = token
        state["finished"] |= torch.isin(token, self.ends) | (age + 1 >= self.config.max_new_tokens)
        return token, None

    def _next(self, hidden: Tensor, vocabulary: Vocabulary, age: Tensor, column: int) -> Tensor:
        config = self.config
        if config.no_repeat_ngram:
            logits = vocabulary.logits(hidden).float()
            tokens = self.state["tokens"][:, None]
            return self._restrict(logits, tokens, age, column).argmax(-1)
        too_early = age < config.min_new_tokens if config.min_new_tokens else None
        return vocabulary.best(hidden, too_early, self.ends)

    def results(self, places: Tensor, first: Tensor) -> list[Result]:
        rows = self._cut(self.state["tokens"][places], first)
        if not self.scored:
            return [Result(ids, None, None) for ids in rows]
        means = (self.state["log_p"] / self.state["length"])[places]
        return [Result(ids, None, p) for ids, p in zip(rows, means.exp().tolist(), strict=True)]


class Beams(_State):
    """The W best partial outputs of each place go on; complete ones compete by log-probability
    divided by length ** length_penalty."""

    def __init__(
        self,
        config: SearchConfig,
        places: int,
        columns: int,
        special: Special,
        device: torch.device,
    ) -> None:
        super().__init__(config, special, device)
        self.width, pad = config.num_beams, self.pad
        shape = (places, self.width)
        # As float32, like Python's power divided into a float32 tensor.
        powers = [max(n, 1) ** config.length_penalty for n in range(config.max_new_tokens + 2)]
        self.powers = torch.tensor(powers, dtype=torch.float32, device=device)
        self.state = {
            "tokens": torch.full((*shape, columns), pad, device=device),
            "scores": torch.zeros(shape, device=device),
            "best": torch.full((*shape, columns), pad, device=device),
            "best_scores": torch.full(shape, NEVER, device=device),
            "complete": torch.zeros(shape, dtype=torch.bool, device=device),
            "finished": torch.ones(places, dtype=torch.bool, device=device),
        }

    def begin(self, places: Tensor) -> None:
        state = self.state
        state["tokens"][places] = self.pad
        state["best"][places] = self.pad
        state["scores"][places] = NEVER  # all beams start alike: only the first counts
        state["scores"][places, 0] = 0.0
        state["best_scores"][places] = NEVER
        state["complete"][places] = False
        state["finished"][places] = False

    def advance(
        self, hidden: Tensor, vocabulary: Vocabulary, age: Tensor, column: int
    ) -> tuple[Tensor, Tensor]:
        state, width, limit = self.state, self.width, self.config.max_new_tokens
        n_places = len(age)
        age = age.clamp(max=limit)  # finished places may run on
        log_p = torch.log_softmax(vocabulary.logits(hidden).float(), -1)
        log_p = self._restrict(log_p, state["tokens"], age, column)
        total = (log_p.view(n_places, width, -1) + state["scores"][..., None]).flatten(1)
        top, index = largest(total, max(2, 1 + len(self.ends)) * width)  # W that go on, at least
        beam, token = index // log_p.shape[-1], index % log_p.shape[-1]
        tokens = _of_beams(state["tokens"], beam)
        tokens[..., column] = token
        ends = torch.isin(token, self.ends) | (age + 1 >= limit)[:, None]

        # What goes on: the best that do not end.
        running = top + ends.float() * NEVER
        chosen = running.topk(width)[1]
        state["tokens"] = _of_beams(tokens, chosen)
        state["scores"] = running.gather(1, chosen)

        # What is complete: the best W of the old ones and those among the first W that end here.
        new = ends.clone()
        new[:, width:] = False
        scores = top / self.powers[age + 1][:, None]
        scores = scores + (state["finished"][:, None] | ~new).float() * NEVER
        scores = torch.cat([state["best_scores"], scores], 1)
        kept = scores.topk(width)[1]
        state["best"] = _of_beams(torch.cat([state["best"], tokens], 1), kept)
        state["best_scores"] = scores.gather(1, kept)
        state["complete"] = torch.cat([state["complete"], new], 1).gather(1, kept)

        # Nothing that runs can win any more (by the present length: transformers' heuristic).
        best_running = state["scores"][:, :1] / self.powers[age + 1][:, None]
        worst = torch.where(state["complete"], state["best_scores"].amin(1, keepdim=True), NEVER)
        hopeless = ~(best_running > worst).any(1)
        state["finished"] = state["finished"] | hopeless | (age + 1 >= limit)

        rows = torch.arange(n_places, device=beam.device)[:, None] * width
        past = (rows + beam.gather(1, chosen)).view(-1)
        return token.gather(1, chosen).view(-1), past

    def results(self, places: Tensor, first: Tensor) -> list[Result]:
        rows = self._cut(self.state["best"][places, 0], first)
        scores = self.state["best_scores"][places, 0].tolist()
        return [
            Result(ids, score, of_beam(ids, score, self.config))
            for ids, score in zip(rows, scores, strict=True)
        ]


def _of_beams(tensor: Tensor, beams: Tensor) -> Tensor:
    """tensor (P, W, C), beams (P, n) -> (P, n, C)."""
    return tensor.gather(1, beams[..., None].expand(-1, -1, tensor.shape[-1]))


def of_beam(ids: list[int], score: float, config: SearchConfig) -> float:
    """The confidence behind a beam's score, which is log-probability / length ** penalty."""
    n_tokens = min(len(ids) + 1, config.max_new_tokens)
    return math.exp(score * n_tokens ** (config.length_penalty - 1))


def until(row: list[int], special: Special) -> list[int]:
    """The row up to end-of-sequence, padding left out."""
    end = next((i for i, token in enumerate(row) if token in special.ends), len(row))
    return [token for token in row[:end] if token != special.pad]

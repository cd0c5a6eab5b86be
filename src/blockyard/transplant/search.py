"""What the budget decides: which layers, and which widths where they are left open, by measuring whole choices.

Two texts, and a third that the search never sees. On the first, layers are tried one at a time for an order alone:
their costs are of the size of their noise and add up to less than the whole costs. On the second, whole choices are
measured, and one is within a budget of loss where the upper end of its 95 % interval is: what was chosen on a text
looks better on it than it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from torch import Tensor

from blockyard.errors import InputError
from blockyard.models.lm import TransformerLM
from blockyard.transplant.caches import cache_bytes, counted_context, spec_bytes
from blockyard.transplant.choices import Part, check_part, forms_of, narrowest, numbers, shape_of, written
from blockyard.transplant.decision import Deciding, LayerChoice
from blockyard.transplant.measure import Difference, token_losses
from blockyard.transplant.model import chosen_layers, refusals, transplant
from blockyard.transplant.moments import Moments
from blockyard.transplant.record import Tried
from blockyard.transplant.settings import Budget
from blockyard.transplant.target import parse_transplant_choice
from blockyard.transplant.trials import lone_costs, mixed, over_kinds, share_weights

Known = Callable[[str], list[float] | None]
Keep = Callable[[str, list[float]], None]
Progress = Callable[[str, int, int], None]


def choose_layers(
    model: TransformerLM,
    blocks: str,
    ids: Tensor,
    *,
    budget: Budget,
    layers: Iterable[int] | None = None,
    kinds: Sequence[int] | None = None,
    moments: Moments | None = None,
    progress: Progress = lambda what, done, total: None,
) -> LayerChoice:
    """Find the layers, and the widths where some are `auto`, that a budget allows when all are transplanted together.

    Args:
        model: trained.
        blocks: one mixer or FFN, as for `transplant`; `mla` alone leaves both its widths open.
        ids: the text that decides, token ids [pieces, length]: neither the one of the moments nor the one reported on.
        budget: what it may cost, in loss or in bytes of the cache.
        layers: exactly these, so that only widths are chosen; None chooses among all.
        kinds: the kind of text of each piece, kinds in turns; None where all are of one.
        moments: as for `transplant`.
        progress: told what is being done, how much of it is, and out of how much.

    Raises:
        InputError: for a budget that cannot be met, naming what came nearest, and as `transplant` does.
    """
    if not budget.given:
        raise InputError("budget has neither a loss nor a cache: nothing decides")
    depth, known = len(model.layers), dict[str, list[float]]()
    part = Part(blocks, "auto" if layers is None else tuple(chosen_layers(layers, depth)))
    check_part(part)
    deciding = Deciding.of(ids, [0] * len(ids) if kinds is None else list(kinds))
    context = counted_context(model, budget.context)
    search = Search(
        model, model, [], part, budget, context, moments, deciding, known.get, known.__setitem__, progress
    )  # fmt: skip
    return search.run()


class Search:
    """A search for one part of a choice, the others in place.

    Args:
        original: the trained model.
        base: the original with the choice's other parts in place, or itself.
        others: those parts, forms with their layers.
        part: what is searched.
        budget: what it may cost.
        context: tokens at which caches are counted.
        moments: of the original; None where no form needs them.
        deciding: the text.
        known: gives a measurement that was kept, by its name.
        keep: keeps one.
        progress: told what is being done, how much of it is, and out of how much.
    """

    def __init__(
        self,
        original: TransformerLM,
        base: TransformerLM,
        others: Sequence[tuple[str, tuple[int, ...]]],
        part: Part,
        budget: Budget,
        context: int,
        moments: Moments | None,
        deciding: Deciding,
        known: Known,
        keep: Keep,
        progress: Progress,
    ) -> None:
        self.original, self.base, self.others, self.part = original, base, list(others), part
        self.budget, self.moments, self.deciding = budget, moments, deciding
        self.known, self.keep, self.progress = known, keep, progress
        self.context = context
        self.bytes_before = sum(cache_bytes(original, context))
        self.base_bytes = cache_bytes(base, context)
        self.trials: list[Tried] = []
        self.notes: list[str] = []
        self._fitted: tuple[str, TransformerLM] | None = None
        self._sizes: dict[tuple[str, str], int] = {}
        self.candidates = self._candidates()

    def run(self) -> LayerChoice:
        """Search.

        Raises:
            InputError: for a budget that cannot be met, naming what came nearest; or when no layer can be transplanted.
        """
        candidates = self.candidates
        forms = forms_of(self.part, self.original, candidates[0])
        if self.part.layers == "auto":
            form, layers, alone = self._layers(forms, candidates)
        else:
            form, layers, alone = self._widths(forms, candidates), tuple(candidates), {}
        cost = self.whole(form, layers).cost
        self._fitted = None
        return LayerChoice(form, layers, cost, tuple(self.trials), alone, tuple(self.notes))

    def _candidates(self) -> list[int]:
        """Return the layers that may be taken; those that cannot be are left out by name."""
        taken = {layer for _, layers in self.others for layer in layers}
        if self.part.layers != "auto":
            return list(self.part.layers)
        free = [i for i in range(len(self.base.layers)) if i not in taken]
        odd = refusals(self.original, narrowest(self.part.form), free)
        found = [i for i in free if i not in odd]
        if not found:
            raise InputError(next(iter(odd.values()), "no layer is left for the search"))
        for reason, same in itertools.groupby(odd.items(), key=lambda item: item[1].partition(" has ")[2]):
            self.notes.append(f"left as they are: layers {numbers(i for i, _ in same)} (with {reason})")
        return found

    # Layers and widths.

    def _widths(self, forms: list[str], layers: list[int]) -> str:
        """Return the form for layers that were given."""
        if self.budget.cache is not None:
            return self._least_loss([(form, layers) for form in forms])[0]
        fits, beyond, best = -1, len(forms), None
        while fits + 1 < beyond:
            # From the largest cache to the smallest: what fits behind what does not is not looked for.
            middle = (fits + beyond) // 2
            trial = self.whole(forms[middle], layers)
            if self.fits(trial):
                fits, best = middle, forms[middle]
            else:
                beyond = middle
        if best is None:
            raise self._unmet()
        return best

    def _layers(self, forms: list[str], candidates: list[int]) -> tuple[str, tuple[int, ...], dict[int, Difference]]:
        """Return the form and the layers that it goes into, and what each cost alone."""
        order, alone = self._order(candidates)
        if self.budget.cache is not None:
            wholes: list[tuple[str, list[int]]] = []
            for form in forms:
                count = self._fewest(form, order)
                if count is not None:
                    # Evenly spread, too: what is cheap alone may lie side by side.
                    even = [candidates[i * len(order) // count] for i in range(count)]
                    wholes += [(form, order[:count])] + ([(form, even)] if len(forms) == 1 else [])
            if not wholes:
                raise self._too_large([(form, order) for form in forms])
            form, layers = self._least_loss(wholes)
            return form, tuple(sorted(layers)), alone
        best: tuple[int, str, list[int]] | None = None
        for form in forms:
            # A narrower form that saves no more than the best so far is not worth its loss.
            most = None if best is None else best[0]
            smaller = (n for n in range(1, len(order) + 1) if most is None or self._bytes(form, order[:n]) < most)
            least = next(smaller, len(order) + 1)
            count = self._most(form, order, least, first=best is None)
            if count is not None:
                best = (self._bytes(form, order[:count]), form, order[:count])
        if best is None:
            raise self._unmet()
        return best[1], tuple(sorted(best[2])), alone

    def _most(self, form: str, order: list[int], least: int, first: bool) -> int | None:
        """Return how many layers of an order fit into the budget of loss, by halving; None for fewer than `least`."""
        fits, beyond, tried = least - 1, len(order) + 1, 0
        while fits + 1 < beyond:
            # All first, where the budget may allow every layer; where only more than so many would do, those first.
            count = (fits + beyond) // 2 if tried else len(order) if first else least
            tried += 1
            if self.fits(self.whole(form, order[:count])):
                fits = count
            else:
                beyond = count
        return fits if fits >= least else None

    def _fewest(self, form: str, order: list[int]) -> int | None:
        """Return the fewest layers of an order that bring the cache within the budget; None where none do."""
        within = (n for n in range(1, len(order) + 1) if self._within(form, order[:n]))
        return next(within, None)

    def _least_loss(self, wholes: Sequence[tuple[str, list[int]]]) -> tuple[str, list[int]]:
        """Return the choice of least loss among those within the budget of cache.

        Raises:
            InputError: when none is, or the best is beyond a budget of loss.
        """
        within = [whole for whole in wholes if self._within(*whole)]
        if not within:
            raise self._too_large(wholes)
        measured = [(self.whole(*whole), whole) for whole in within]
        best, chosen = min(measured, key=lambda pair: pair[0].cost.mean)
        if self.budget.loss is not None and not self.fits(best):
            raise self._unmet()
        return chosen

    def fits(self, trial: Tried) -> bool:
        """Return whether a choice is within the budget of loss, by the upper end of its interval."""
        return self.budget.loss is not None and upper(trial.cost) <= self.budget.loss

    def _unmet(self) -> InputError:
        """Return the error for a budget of loss, with what came nearest."""
        nearest = min(self.trials, key=lambda trial: upper(trial.cost))
        return InputError(
            f"budget.loss={self.budget.loss:g} cannot be met by {self.part.form}: the nearest that was measured is "
            f"{nearest.blocks}, {nearest.cost} nats per token, of which the upper end counts; allow more, ask for "
            "less, or give more text with text.select"
        )

    def _too_large(self, wholes: Sequence[tuple[str, list[int]]]) -> InputError:
        """Return the error for a budget of cache, with the least that was counted."""
        form, layers = min(wholes, key=lambda whole: self._bytes(*whole))
        return InputError(
            f"budget.cache={self.budget.cache:g} cannot be met by {self.part.form}: {form} in layers "
            f"{numbers(layers)} still holds {self._bytes(form, layers) / self.bytes_before:.2f} of the original's "
            f"cache at {self.context:,} tokens"
        )

    # Bytes.

    def _bytes(self, form: str, layers: Sequence[int]) -> int:
        held = list(self.base_bytes)
        for layer in layers:
            held[layer] = self._layer_bytes(form, layer)
        return sum(held)

    def _within(self, form: str, layers: Sequence[int]) -> bool:
        share = self.budget.cache
        return share is None or self._bytes(form, layers) <= share * self.bytes_before

    def _layer_bytes(self, form: str, layer: int) -> int:
        # An FFN has no cache, whatever mixer stands beside it.
        if parse_transplant_choice(form).part == "ffn":
            return self.base_bytes[layer]
        key = (form, str(self.original.config.layers[layer]))
        if key not in self._sizes:
            spec = shape_of(form, self.original, layer)
            self._sizes[key] = spec_bytes(self.original, spec, self.context)
        return self._sizes[key]

    # Measurements.

    def whole(self, form: str, layers: Sequence[int]) -> Tried:
        """Measure a whole choice on the text for wholes, once."""
        blocks = written([*self.others, (form, layers)])
        each = self.known(f"whole/{blocks}")
        if each is None:
            before = self._before()
            fitted, total = self._fit(form), len(self.deciding.whole)
            each = []
            with mixed(fitted, self.base, layers):
                for n, piece in enumerate(self.deciding.whole):
                    each.append(float(token_losses(fitted, piece[None]).double().mean()) - before[n])
                    self.progress(f"measuring {blocks}", n + 1, total)
            self.keep(f"whole/{blocks}", each)
        cost = over_kinds(each, self.deciding.whole_kinds, self.deciding.whole.shape[1] - 1)
        trial = Tried(blocks, tuple(sorted(layers)), cost, self._bytes(form, layers))
        if trial not in self.trials:
            self.trials.append(trial)
        return trial

    def _before(self) -> list[float]:
        """Return the original's loss on each piece of the text for wholes."""
        found = self.known("whole/original")
        if found is None:
            found, total = [], len(self.deciding.whole)
            for n, piece in enumerate(self.deciding.whole):
                found.append(float(token_losses(self.original, piece[None]).double().mean()))
                self.progress("measuring the original", n + 1, total)
            self.keep("whole/original", found)
        return found

    @property
    def order_form(self) -> str:
        """The form that layers are ordered by, where they are open."""
        forms = forms_of(self.part, self.original, self.candidates[0])
        return forms[len(forms) // 2]

    def order_row(self, piece: int) -> list[float]:
        """Measure every layer alone on one piece of the text for the order, once: KL of every candidate, then the
        losses."""
        form, candidates = self.order_form, self.candidates
        name = self.row_name(piece)
        row = self.known(name)
        if row is None:
            fitted, total = self._fit(form), len(self.deciding.order) * len(candidates)
            told = partial(self._tell, f"trying {form} layer by layer", piece * len(candidates), total)
            found = lone_costs(self.base, {i: fitted.layers[i] for i in candidates}, self.deciding.order[piece], told)
            # Flat, as all that is kept.
            row = [found[i][0] for i in candidates] + [found[i][1] for i in candidates]
            self.keep(name, row)
        return row

    def row_name(self, piece: int) -> str:
        """Return the name under which a row of the order is kept."""
        return "/".join(filter(None, ("alone", written(self.others), self.order_form, str(piece))))

    def _order(self, candidates: list[int]) -> tuple[list[int], dict[int, Difference]]:
        """Return the candidates from the cheapest to the dearest, and what each costs alone."""
        rows = [self.order_row(piece) for piece in range(len(self.deciding.order))]
        size = len(candidates)
        kl = {layer: sum(row[at] for row in rows) for at, layer in enumerate(candidates)}
        tokens = self.deciding.order.shape[1] - 1
        alone = {
            layer: over_kinds([row[size + at] for row in rows], self.deciding.order_kinds, tokens)
            for at, layer in enumerate(candidates)
        }
        return sorted(candidates, key=kl.__getitem__), alone

    def _tell(self, what: str, before: int, total: int, done: int) -> None:
        self.progress(what, before + done, total)

    def _fit(self, form: str) -> TransformerLM:
        """Return the base with a form in all layers that may be taken; the last one is kept."""
        if self._fitted is None or self._fitted[0] != form:
            # Let go first: two fitted models at a time are one too many.
            self._fitted = None
            made = transplant(
                self.base,
                form,
                layers=self.candidates,
                moments=self.moments,
                progress=lambda done, total: self.progress(f"fitting {form}", done, total),
            )
            share_weights(made, self.base)
            self._fitted = (form, made)
        return self._fitted[1]


def upper(cost: Difference) -> float:
    """Return the upper end of a cost's interval; the cost itself where there is none."""
    return cost.mean if cost.half != cost.half else cost.mean + cost.half

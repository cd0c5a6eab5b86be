"""What the measured runs allow one to say, and in which words.

Every choice is set beside the one with the best mean. It is *worse* where the interval of the difference leaves out
zero, *equivalent* where the interval lies within a margin that does not matter, and *undecided* otherwise: nothing was
shown, which is not the same as no difference. All intervals of a report hold at once (`stats.Family`). Only equivalent
choices share a lead. One seed has no interval, so nothing is claimed from it.
"""

from __future__ import annotations

from blockyard.report import units
from blockyard.report.answers import advantages, answers_of, in_a_sentence, margin_in_words, seeds_in_words
from blockyard.report.confirmed import confirmed
from blockyard.report.earlier import earlier_said
from blockyard.report.phrases import at_equal, join, level, spent
from blockyard.report.ranking import compare_by_need, compare_with_leader, margin_in, rank
from blockyard.report.schema import (
    LOST,
    Answer,
    Choice,
    Comparison,
    Ranked,
    Report,
    Run,
    Verdict,
    position_word,
    quality_unit,
    quality_word,
)
from blockyard.report.stats import CONFIDENCE, has_intervals
from blockyard.report.wants import parse_want

# More undecided choices than these are only named in the headline.
_MOST_IN_HEADLINE = 3


def analyse(report: Report) -> Report:
    """Return the report with its ranking, comparisons, verdict and answers worked out from its runs."""
    done: Report = {**report}
    if "looks" in report:
        done["ranking"], done["comparisons"] = compare_by_need(report)
        done["margin"] = margin_in(report, done["ranking"])
    else:
        done["ranking"] = rank(report)
        done["margin"] = margin_in(report, done["ranking"])
        done["comparisons"] = compare_with_leader(report, done["ranking"], done["margin"])
    done["answers"] = [*_for_a_purpose(done), *answers_of(done), *confirmed(done), *earlier_said(done)]
    done["verdict"] = put_in_words(done)
    return done


def put_in_words(report: Report) -> Verdict:
    """Return the answer in one or two plain sentences, then what else a reader should know before believing it."""
    ranking = report["ranking"]
    ranked = [row for row in ranking if row["rank"] is not None]
    details = [*_about_looks(report), *_warnings(report)]
    if not ranked:
        headline = "No choice finished without diverging, so there is nothing to rank."
        return {"kind": "none", "headline": headline, "details": details}
    leader = ranked[0]
    reached, where = level(report, leader["final"]), at_equal(report)
    if len(ranking) == 1:
        return {
            "kind": "single",
            "headline": f"{leader['name']} reached {reached} {spent(report)}.",
            "details": details,
        }
    if leader["final"]["n"] < 2:
        return _one_seed(report, ranked, details)
    if not has_intervals():
        headline = (
            f"No verdict is drawn, as scipy is not installed (pip install 'blockyard[report]'): {leader['name']} has "
            f"the best mean, {reached} {where}."
        )
        return {"kind": "no_verdict", "headline": headline, "details": details}
    kind, headline = standing(report, report["comparisons"], leader)
    return {"kind": kind, "headline": headline, "details": details}


def standing(report: Report, comparisons: list[Comparison], leader: Ranked) -> tuple[str, str]:
    """Return (kind, sentence) of who leads, from the leader's comparisons."""
    reached, where = level(report, leader["final"]), at_equal(report)
    by_word = {
        word: [row for row in comparisons if row["verdict"] == word] for word in ("worse", "equivalent", "undecided")
    }
    equal, open_ = ([row["name"] for row in by_word["equivalent"]], by_word["undecided"])
    lead = join([leader["name"], *equal])
    if not any(by_word.values()):
        return "single", f"{leader['name']} reached {reached} {where}; no other choice has results to compare it with."
    if equal and not open_:
        rest = "" if by_word["worse"] else " No choice is worse."
        share = f"{lead} share the lead: equivalent within {margin_in_words(report)}, {reached} {where}."
        return "shared", share + rest
    if not open_:
        return "winner", f"{leader['name']} wins: {reached} {where}."
    sentence = f"{leader['name']} has the best mean, {reached} {where}"
    if equal:
        sentence += f", and {join(equal)} {'is' if len(equal) == 1 else 'are'} equivalent to it"
    if len(open_) > _MOST_IN_HEADLINE:
        return "undecided", f"{sentence}; {join([row['name'] for row in open_])} are undecided."
    told = "; ".join(
        f"{row['name']}, {abs(row['difference'] or 0.0):.2g} behind ({seeds_in_words(row)})" for row in open_
    )
    return "undecided", f"{sentence}. Undecided: {told}."


def _about_looks(report: Report) -> list[str]:
    """Return how seeds were added, and how looking several times was paid for."""
    if "looks" not in report:
        return []
    counts = join([str(look["seeds"]) for look in report["looks"]])
    most = report["settings"].get("compare", {}).get("most_seeds")
    shares = join([f"{look['alpha']:.1%}" for look in report["looks"]])
    early = [f"{r['name']} after {r['seeds']}" for r in report["comparisons"] if r.get("seeds", 0)]
    told = f" Shown to be worse: {join(early)} seeds." if early else ""
    return [
        f"Seeds by need: looked at after {counts} of at most {most}; of the error of 5 % these looks may make "
        f"{shares}, so that all together keep it.{told}"
    ]


def _for_a_purpose(report: Report) -> list[Answer]:
    """Return who is best among the choices that meet what was asked for, if anything was."""
    asked = report["settings"].get("compare", {}).get("want") or []
    if not asked:
        return []
    choices = report["choices"]
    wants = [parse_want(text, [choice["name"] for choice in choices]) for text in asked]
    meets = {choice["name"]: [want.met_by(choice, choices) for want in wants] for choice in choices}
    ranked = [row for row in report["ranking"] if row["rank"] is not None]
    able = [row for row in ranked if all(meets[row["name"]])]
    question = f"Which, if {join([want.text for want in wants])}?"
    sentences = []
    if not able:
        sentences.append("None of the choices that finished meets that.")
    elif len(able) == 1:
        sentences.append(f"Only {able[0]['name']} meets it: {level(report, able[0]['final'])}.")
    else:
        alpha = report["looks"][-1]["alpha"] if "looks" in report else 1 - CONFIDENCE
        rows = compare_with_leader(report, able, report["margin"], 1 - alpha)
        sentences.append(standing(report, rows, able[0])[1])
        sentences += [line for row in rows if (line := in_a_sentence(report, row))]
    if able and able[0] is not ranked[0]:
        gap = abs((able[0]["final"]["mean"] or 0.0) - (ranked[0]["final"]["mean"] or 0.0))
        sentences.append(f"{ranked[0]['name']}, the best of all by its mean, does not meet it; that costs {gap:.2g}.")
    unknown = [name for name, found in meets.items() if None in found and False not in found]
    if unknown:
        sentences.append(f"What it asks for was not measured of {join(unknown)}.")
    return [{"question": question, "sentences": sentences}]


def _one_seed(report: Report, ranked: list[Ranked], details: list[str]) -> Verdict:
    unit, places = quality_unit(report) or quality_word(report), 3
    losses = [f"{row['name']} {row['final']['mean']:.{places}f}" for row in ranked]
    headline = (
        f"One seed, so no claim: {join(losses)} {unit} {at_equal(report)}. "
        "A single run has no interval, and the order may be chance."
    )
    leader, by_name = ranked[0]["name"], {choice["name"]: choice for choice in report["choices"]}
    gained = []
    for row in ranked[1:]:
        gains = advantages(report, by_name[row["name"]], by_name[leader])
        if gains:
            gained.append(f"What needs no seeds: against {leader}, {row['name']} {join(gains)}.")
    advice = "Run the same command with --seeds 3 or more to learn whether they differ; this run is kept."
    return {"kind": "one_seed", "headline": headline, "details": [*gained, advice, *details]}


def _warnings(report: Report) -> list[str]:
    """Return what makes the comparison less than it seems: divergence, unfinished runs, a match that missed."""
    found: list[str] = []
    matched = "parameters" if report["match"] == "params" else f"FLOPs per {position_word(report)}"
    for choice in report["choices"]:
        for status in LOST:
            lost = [run for run in choice["runs"] if run["status"] == status]
            if lost:
                found.append(_lost(choice, status, lost))
        missing = sum(run["status"] == "unfinished" for run in choice["runs"])
        if missing:
            found.append(
                f"{choice['name']}: {missing} of {len(choice['runs'])} runs are not finished. "
                "Run the same command again to continue."
            )
        if report["match"] != "none" and {"d_model", "n_layers"} & choice["match"]["changed"].keys():
            found.append(_reshaped(choice, report))
        miss = choice["match"]["miss"]
        if report["match"] != "none" and abs(miss) > 0.02:
            found.append(
                f"{choice['name']} is {abs(miss):.1%} {'larger' if miss > 0 else 'smaller'} than {report['reference']} "
                f"in {matched}: no setting of its widths comes nearer."
            )
    return found + report["notes"]


def _lost(choice: Choice, status: str, lost: list[Run]) -> str:
    """Word which runs ended without a figure, and for an error of the block's own which."""
    words = status if status == "diverged" else f"was {status}" if status == "killed" else "failed"
    seeds = join([str(run["seed"]) for run in lost])
    kept = sum(run["status"] not in LOST for run in choice["runs"])
    rest = f"its figures are of the other {kept}, and it is not ranked" if kept else "it is not ranked"
    why = "" if status == "diverged" else f"; {lost[0]['note'].rstrip('.')}"
    return f"{choice['name']} {words} in {len(lost)} of {len(choice['runs'])} runs (seed {seeds}{why}): {rest}."


def _reshaped(choice: Choice, report: Report) -> str:
    """Word that a match changed more than hidden widths: a wider model also has a larger embedding, and one that was
    made narrower or shallower may lose by that, not by its blocks."""
    reference = next(c for c in report["choices"] if c["name"] == report["reference"])
    changed, shape = choice["match"]["changed"], reference["shape"]
    words, smaller = [], False
    if "d_model" in changed:
        words.append(f"{changed['d_model']} wide")
        smaller |= changed["d_model"] < shape.get("d_model", 0)
    if "n_layers" in changed:
        words.append(f"{changed['n_layers']} layer{'s' * (changed['n_layers'] > 1)} deep")
        smaller |= changed["n_layers"] < shape.get("n_layers", 0)
    told = f"To match {reference['name']}, {choice['name']} became {join(words)}"
    if "d_model" in changed and report["match"] == "params":
        mine, its = units.count(choice["parameters"]), units.count(reference["parameters"])
        told += f", and its embedding and output matrix with it: {mine} parameters in all, against {its}"
    if smaller:
        told += "; --match none compares them at the same width and depth"
    return told + "."

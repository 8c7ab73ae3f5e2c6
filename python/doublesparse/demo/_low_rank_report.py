"""What `demo force` shows: means over seeds, the comparison at equal accuracy, a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._low_rank import CONTROL
from ._show import BLUE, INK, ORANGE, Table, new_figure, save, say, tables
from ._statistics import deviation, paired_difference

# Errors this near count as equal, in points.
EQUAL = 0.5
# A share of the summed rank that is worth having.
MATTERS = 0.05
_NUMBERS = ("before", "decomposed", "finetuned", "summed_rank", "low_macs", "macs", "speedup")
_NOTES = (
    "Errors in percent: before decomposition, after it, after fine-tuning. Ranks: the least number "
    "of filters with that share of the energy, mean over seeds; every layer but the last. "
    "Multiply-adds and time: of the whole network over those of the decomposed one, in which "
    "layers stay whole where two factors would not pay. 'no force' trains on for as long."
)


def summaries(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means and deviations over seeds, per arm and energy, in the order of the rows."""
    groups: dict[tuple[Any, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["arm"], row["energy"]), []).append(row)
    found = []
    for (arm, energy), members in groups.items():
        values = {name: [row[name] for row in members] for name in _NUMBERS}
        ranks = zip(*(row["ranks"] for row in members), strict=True)
        found.append(
            {
                "arm": arm,
                "energy": energy,
                "ranks": [statistics.fmean(each) for each in ranks],
                "mean": {name: statistics.fmean(each) for name, each in values.items()},
                "sd": {name: deviation(each) for name, each in values.items()},
                "values": values,
            }
        )
    return found


def equal_accuracy(found: list[dict[str, Any]], energy: float | None) -> dict[str, Any]:
    """The smallest summed rank with and without force among those that are accurate enough.

    Accurate enough is a fine-tuned error of at most half a point above that of the control at the
    first energy, in the mean over seeds.

    Args:
        found: what `summaries` returned.
        energy: consider this one only; None: all.

    Returns:
        `bound`, the error; `without` and `with`: summaries, the latter None where no force is
        accurate enough; `difference`, with - without in summed rank, paired: (mean, low, high);
        `verdict`.
    """
    controls = [row for row in found if row["arm"] == CONTROL]
    bound = controls[0]["mean"]["finetuned"] + EQUAL
    good = [
        row
        for row in found
        if row["mean"]["finetuned"] <= bound and energy in (None, row["energy"])
    ]

    def smallest(rows: list[dict[str, Any]]) -> Any:
        return min(rows, key=lambda row: row["mean"]["summed_rank"], default=None)

    without = smallest([row for row in good if row["arm"] == CONTROL])
    forced = smallest([row for row in good if row["arm"] != CONTROL])
    if forced is None:
        verdict, difference = "force does not win: no strength is accurate enough", None
    else:
        difference = paired_difference(
            forced["values"]["summed_rank"], without["values"]["summed_rank"]
        )
        share = -difference.mean / without["mean"]["summed_rank"]
        if difference.high < 0 and share >= MATTERS:
            verdict = f"force wins: a summed rank smaller by {share:.0%}, beyond the seeds' spread"
        elif difference.high < 0:
            verdict = f"force does not win: the summed rank is smaller by {share:.1%} only"
        elif difference.mean < 0:
            verdict = "smaller summed rank with force, but within the spread of the seeds"
        else:
            verdict = "force does not win: its summed rank is not smaller"
    return {
        "bound": bound,
        "without": without,
        "with": forced,
        "difference": difference,
        "verdict": verdict,
    }


def falls(found: list[dict[str, Any]], norm: str, energy: float) -> bool:
    """Whether the summed rank never rises with the strength, from no force on."""
    means = [
        row["mean"]["summed_rank"]
        for row in found
        if row["energy"] == energy and row["arm"].norm in ("", norm)
    ]
    return all(b <= a for a, b in zip(means, means[1:], strict=False))


# ------------------------------------------------------------------ tables
_COLUMNS = (
    "arm",
    "energy",
    "ranks",
    "sum",
    "error %",
    "decomposed",
    "fine-tuned",
    "mult-adds",
    "time",
)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    mean, sd = row["mean"], row["sd"]
    return (
        row["arm"].title,
        f"{row['energy']:g}",
        "/".join(f"{rank:.0f}" for rank in row["ranks"]),
        f"{mean['summed_rank']:.0f} ± {sd['summed_rank']:.0f}",
        *(f"{mean[n]:.2f} ± {sd[n]:.2f}" for n in ("before", "decomposed", "finetuned")),
        f"{mean['macs'] / mean['low_macs']:.2f}x",
        f"{mean['speedup']:.2f}x",
    )


def show(results: dict[str, Any]) -> None:
    """Prints all tables and what they say."""
    found, settings = results["summaries"], results["settings"]
    first, *lower = settings["energies"]
    start = "from scratch" if settings["scratch"] else "from a trained baseline"
    title = (
        f"{results['title']}: {settings['train_size']} training images, {settings['seeds']} seeds, "
        f"{start}; batch of {settings['speed_batch']} for times, one thread"
    )
    parts = [Table(title, _COLUMNS, [_cells(row) for row in found if row["energy"] == first])]
    if lower:
        others = [_cells(row) for row in found if row["energy"] != first]
        parts.append(Table("the same networks, decomposed further", _COLUMNS, others))
    tables(*parts)
    say(_NOTES)
    for energy, compared in zip((first, None), results["equal"], strict=True):
        _show_equal(f"energy {first:g}" if energy else "any energy", compared)
    for norm in settings["norms"]:
        verb = "falls" if falls(found, norm, first) else "does not fall"
        say(f"{norm}: the summed rank at energy {first:g} {verb} monotonically with the strength")
    say(
        "Which strength and energy are compared is chosen by the test error, alike on both sides. "
        f"{results['seconds']:.0f} s"
    )


def _show_equal(title: str, compared: dict[str, Any]) -> None:
    rows = [compared["without"], compared["with"]]
    head = f"equal accuracy (fine-tuned error at most {compared['bound']:.2f} %), {title}"
    tables(Table(head, _COLUMNS, [_cells(row) for row in rows if row is not None]))
    gap = compared["difference"]
    numbers = ""
    if gap is not None:
        numbers = f": {gap[0]:+.1f} in summed rank, 95 % interval {gap[1]:+.1f} to {gap[2]:+.1f}"
    say(f"{compared['verdict']}{numbers}")


# ------------------------------------------------------------------ picture
def picture(path: Path, results: dict[str, Any]) -> None:
    """Accuracy against summed rank: after decomposition, and after fine-tuning."""
    figure = new_figure(10, 4.2)
    if figure is None:
        return
    for axis, (name, title) in zip(
        figure.subplots(1, 2, sharex=True),
        (("decomposed", "after decomposition"), ("finetuned", "after fine-tuning")),
        strict=True,
    ):
        for norm, colour, marker in (("", INK, "s"), ("l2", ORANGE, "o"), ("l1", BLUE, "^")):
            rows = [row for row in results["summaries"] if row["arm"].norm == norm]
            if not rows:
                continue
            axis.errorbar(
                [row["mean"]["summed_rank"] for row in rows],
                [100 - row["mean"][name] for row in rows],
                xerr=[row["sd"]["summed_rank"] for row in rows],
                yerr=[row["sd"][name] for row in rows],
                fmt=marker,
                color=colour,
                markersize=4,
                linewidth=0.8,
                label=f"{norm} force" if norm else "no force",
            )
        axis.set_xlabel("summed rank")
        axis.set_ylabel("accuracy, %")
        axis.set_title(f"{results['title']}, {title}", fontsize=9)
        axis.legend(fontsize=8)
    save(figure, path)

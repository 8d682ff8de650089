"""What the pages say of conversion as results/ have it, and what these must hold."""

from docs.tables import load
from tests.helpers.pages import TEXT
from training.recipe import TUNE


def test_what_is_said_of_budgets_is_what_was_measured():
    page = TEXT["conversion.md"]
    rows = {row["method"]: row for row in load("compress_base")["rows"] if row["kind"] != "from scratch"}
    start = {method: row["accuracies"][0] for method, row in rows.items()}
    dense = load("compress_base")["rows"][0]["accuracies"][-1]
    budget, uniform = "full rank, budget as alpha {}, calibrated", "full rank, alpha {}, calibrated"
    assert start[budget.format(0.5)] >= 84 and start[budget.format(0.5)] > start[uniform.format(0.5)]
    half = start[budget.format(0.5)], dense - start[budget.format(0.5)], start[uniform.format(0.5)]
    said = "{:.2f} % without any training, {:.2f} behind the dense network, where one alpha of the same size,"
    assert (said + " calibrated too, has {:.2f}").format(*half) in page
    quarter = start[budget.format(0.25)], start[uniform.format(0.25)]
    assert "{:.2f} against {:.2f}".format(*quarter) in page
    assert f"({rows[budget.format(0.5)]['accuracies'][-1]:.2f} after the second)" in page
    of_57 = [row for row in rows.values() if 225_000 < row["parameters"] < 230_000 and row["method"] != "Tucker"]
    ends = [row["accuracies"][-1] for row in of_57]
    assert f"the ways of 57 % lie within {max(ends) - min(ends):.1f} points" in page


def test_fits_of_trained_filters_are_as_close_to_the_optimum_as_the_page_says():
    farther, closer = [], []
    for layer in load("compress_base")["fit_quality"]:
        assert layer["optimum"] <= layer["fitted"] * (1 + 1e-6) and layer["largest_coefficient"] < 1e4
        farther.append(100 * (layer["fitted"] / layer["optimum"] - 1))
        closer.append(100 * (1 - layer["fitted"] / layer["first_filters"]))
    assert f"within {max(farther) + 0.005:.2f} % of the Eckart-Young optimum" in TEXT["conversion.md"]
    assert f"{min(closer):.0f} to {max(closer):.0f} % closer than keeping the first half" in TEXT["conversion.md"]


def test_what_is_said_of_the_pitch_tracker_is_what_was_measured():
    page, record = TEXT["conversion.md"], load("real_network")
    rows = {name: {row["way"]: row for row in parts["accuracy"]["rows"]} for name, parts in record.items()}
    before = {way: row["converted"]["10 dB"] for way, row in rows["tiny"].items()}
    ours = {way for way in before if way.startswith(("one alpha", "budget"))}
    assert before["budget, calibrated"] > 80 and max(before["one alpha"], before["one alpha, calibrated"]) < 20
    assert f"at most {max(before[way] for way in before.keys() - ours - {'dense'}):.0f} %" in page
    assert f"a budget that is not calibrated finds {before['budget']:.0f})" in page
    dense = before.pop("dense")
    after = {way: rows["tiny"][way]["distilled"] for way in before}
    assert max(abs(row["10 dB"] - dense) for row in after.values()) <= 0.5
    assert min(row["0 dB"] for row in after.values()) > rows["tiny"]["dense"]["converted"]["0 dB"]
    full = {way: row["converted"]["10 dB"] for way, row in rows["full"].items()}
    lost = full["dense"] - min(full[way] for way in full.keys() - {"uniform channel pruning"})
    assert f"loses at most {lost:.1f} points with noise of 10 dB, in any way but pruning" in page
    times = {}
    for name, parts in record.items():
        for row in parts["latency"]["rows"]:
            if row["batch"] == 1:
                times.setdefault((name, row["way"]), []).append(f"{row['ratio']:.2f}")
    said = (
        "LinearConv runs it {} times as fast in torch and {} times in onnxruntime (by a budget; one alpha for all"
        " layers {} and {}), the SVD pair {} and {}, and Tucker, at as good an accuracy, {} and {}. A calibrated budget"
        " takes more multiply-adds for as many parameters, and is slower ({} and {})."
    )
    ways = "budget", "one alpha", "SVD as two convolutions", "Tucker", "budget, calibrated"
    assert said.format(*(ratio for way in ways for ratio in times["full", way])) in page
    tiny = [ratio for way in ours for ratio in times["tiny", way]]
    assert f"too small to become faster ({min(tiny)} to {max(tiny)})" in page


def test_files_that_keep_the_factors_are_smaller():
    bytes_of = {(row["network"], row["file"]): row["bytes"] for row in load("deployment_cpu")["rows"]}
    for network, _ in bytes_of:
        assert bytes_of[network, "features"] < 0.62 * bytes_of[network, "dense"]


def test_what_learning_rates_did_after_conversion_is_that_of_the_results():
    result = load("tune_base")
    rows = {(row["way"], row["lr"]): [loss for loss, _ in row["points"]] for row in result["rows"]}
    (start, _), (dense, _) = result["converted"], result["dense"]
    assert rows["Adam, constant", 1e-4][1] > start * 1.02 and rows["Adam, constant", 3e-3][0] > 10 * start
    assert all(rows["tune", rate][1] < start for rate in (3e-5, 1e-4))
    assert all(rows["tune", rate][-1] < dense for rate in (3e-5, 1e-4, 3e-4)) and rows["tune", 1e-3][-1] > dense
    assert all(rows["tune, --clip 1", rate][-1] >= rows["tune", rate][-1] for rate in (1e-4, 3e-4, 1e-3))
    assert "even 1e-4 makes the network worse at first, and 3e-3 undoes it" in TEXT["zoo.md"]
    assert "up to 3e-4 the end is better than the dense network" in TEXT["zoo.md"]
    assert "AdamW at 1e-4" in TEXT["zoo.md"] and TUNE.lr == 1e-4

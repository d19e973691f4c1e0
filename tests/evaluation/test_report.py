"""Tables, JSON and plots say what was measured, and how."""

import dataclasses
import io
import json

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from guidedflow.evaluation import (
    Report,
    Scores,
    figures,
    heading,
    legend,
    plot,
    summary,
    table,
    to_json,
)


def _scores(accuracy: float, distance: float) -> Scores:
    return Scores(1000, accuracy, (accuracy, float("nan")), distance, 2.0, 1.5, 0.9, 0.8, 9.0)


@pytest.fixture
def report():
    rows = (_scores(0.95, 1.2), _scores(0.99, 0.9), _scores(1.0, 2.5))
    return Report((1.0, 2.0, 4.0), rows, _scores(0.98, 0.37), {"solver": "heun", "steps": 16})


def test_the_best_scale_has_the_smallest_pixel_distance(report):
    assert report.scales[report.best] == 2.0


def test_the_table_has_a_row_a_scale_and_the_real_images(report):
    lines = table(report).splitlines()
    assert [line.split()[0] for line in lines] == ["scale", "1", "2", "4", "real"]
    assert len({len(line) for line in lines}) == 1
    assert "0.9900" in lines[2]


def test_json_holds_every_figure_and_no_nan(report):
    raw = json.loads(to_json(report), parse_constant=lambda name: pytest.fail(name))
    assert [row["scale"] for row in raw["scales"]] == [1.0, 2.0, 4.0]
    assert set(raw["real"]) == {field.name for field in dataclasses.fields(Scores)}
    assert raw["scales"][0]["accuracies"] == [0.95, None]
    assert raw["best_scale"] == 2.0
    assert raw["settings"] == {"solver": "heun", "steps": 16}


def test_the_plot_names_its_axes_and_draws_the_floor(report):
    figure = plot(report)
    for axes in figure.axes:
        assert axes.get_title()
        assert "guidance scale" in axes.get_xlabel()
        assert axes.get_ylabel()
        assert any("real" in text.get_text() for text in axes.get_legend().get_texts())
    FigureCanvasAgg(figure).print_png(io.BytesIO())


def test_scales_out_of_order_are_drawn_in_order(report):
    turned = dataclasses.replace(report, scales=report.scales[::-1], scores=report.scores[::-1])
    line, again = (plot(r).axes[0].lines[0] for r in (report, turned))
    assert list(line.get_ydata()) == list(again.get_ydata())


def test_the_summary_says_the_wanted_scales_and_the_best(report):
    lines = summary(report, wanted=(1.0, 3.0))
    assert lines[0] == "accuracy 0.9500 at scale 1"
    assert "0.900 at scale 2" in lines[1]
    assert len(lines) == 2


def test_a_score_too_few_is_refused(report):
    with pytest.raises(ValueError, match="one score a scale"):
        dataclasses.replace(report, scales=(1.0, 2.0))


def test_what_was_not_taken_has_no_column_and_no_curve(report):
    many = tuple(dataclasses.replace(s, frechet_pixels=float("nan")) for s in report.scores)
    floor = dataclasses.replace(report.floor, frechet_pixels=float("nan"), accuracy=float("nan"))
    many = (many[0], dataclasses.replace(many[1], frechet_features=1.0), many[2])
    report = Report(report.scales, many, floor, report.settings, "training images")
    assert report.scales[report.best] == 2.0
    lines = table(report).splitlines()
    assert "pixels" not in lines[0]
    assert lines[-1].split()[:3] == ["real", "1000", "-"]
    assert "in features 1.000 at scale 2 (real against real 2.000)" in summary(report)[-1]
    labels = [line.get_label() for axes in plot(report).axes for line in axes.lines]
    assert not any("pixels" in label for label in labels)
    raw = json.loads(to_json(report))
    assert raw["real"]["frechet_pixels"] is None


def test_the_title_and_the_legend_say_what_was_compared_with(report):
    trained = dataclasses.replace(report, compares_with="training images")
    assert heading(report) == "Samples compared with the held-out images"
    assert "training images: none were held out" in heading(trained)
    assert "distance to the training images" in legend(trained)
    assert plot(trained).axes[1].get_title() == "Distance to training images"
    assert json.loads(to_json(trained))["compared_with"] == "training images"
    with pytest.raises(ValueError, match="unknown set to compare with 'held out images'"):
        dataclasses.replace(report, compares_with="held out images")


def test_the_figures_of_one_scale_are_a_line(report):
    line = figures("scale 2", report.scores[1])
    assert line.startswith("scale 2: images 1000, accuracy 0.9900, FD pixels 0.900")
    assert "\n" not in line

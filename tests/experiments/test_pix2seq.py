"""The benchmark of the metric: a row for each evaluator, and equal numbers."""

from experiments.pix2seq import bench_average_precision as bench
from locojax.report import results


def test_the_benchmark_has_a_row_for_each_evaluator(tmp_path):
  path = str(tmp_path / "bench.json")
  argv = "--images 4 --dets 10 --classes 2 --rounds 1 --results"
  bench.main([*argv.split(), path])
  rows = results.load(path)["rows"]
  assert [r["evaluator"] for r in rows] == list(bench.EVALUATORS)
  assert all(r["largest_difference"] <= 1e-12 for r in rows)
  assert rows[0]["evaluation_ratio"] == 1 and rows[0]["detections"] == 40

# SPDX-License-Identifier: Apache-2.0
"""The small timing commands of `benchmarks/`: every way computes the same, and every line is printed."""

import explanation_overhead
import packed_attention as benchmark
from run_pruning_study import ROOT


def test_every_way_through_packed_attention_computes_the_same(capsys):
    benchmark.main(["--batch_sizes", "1", "9", "--most_tokens", "40", "--num_repeats", "2", "--num_heads", "2"])
    printed = capsys.readouterr().out.splitlines()
    ways = len(benchmark.NUM_GROUPS) + len(benchmark.CHUNK_SIZES) + 2
    assert len(printed) == 2 * (ways + 1)
    differences = [float(line.rsplit(" ", 1)[1]) for line in printed if "difference" in line]
    assert max(differences) < 1e-5  # float32: the ways sum in other orders
    assert sum("kernel" in line and "1.00 (1.00-1.00)" in line for line in printed) == 2


def test_the_overhead_of_an_explanation_is_the_call_less_the_forward_pass(capsys):
    model, image = str(ROOT / "checkpoints/ice-deit-scenes"), str(ROOT / "docs/images/scene.png")
    explanation_overhead.main(["--image", image, "--model_name_or_path", model, "--num_repeats", "2"])
    outside, forward, ratio = capsys.readouterr().out.splitlines()
    assert outside.startswith("outside, ms")
    assert forward.startswith("forward, ms")
    assert float(outside.split()[3].rstrip(",")) > 0
    assert float(ratio.split()[2].rstrip(",")) > 0
    explain = explanation_overhead.load_pipeline(model)
    explanation_overhead.time_calls(explain, image, 1)
    assert not explain.model._forward_hooks  # the clock is taken off again
    assert not explain.model._forward_pre_hooks

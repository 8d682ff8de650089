"""Runs as the result files of sweeps hold them, with made-up numbers."""

import json

RANKS = {"rank": 1, "lowrank": 10}  # by type
COUNTS = dict.fromkeys(("parameters", "nonzero_parameters", "flops_paper", "macs_inference"), 1000)


def entry(setting="-t dense", accuracy=85.0, network="Base", seed=0, epochs=20, **more):
    """A run; further arguments replace entries of its report."""
    kind = setting.split()[1]
    report = {"architecture": network, "type": kind, "rank": RANKS.get(kind), "sparsity": None, "alpha": 0.5}
    report |= {"dataset": "cifar10", "num_classes": 10, "width": 1.0, "reg_weight": 0.01, "seed": seed}
    report |= {"epochs": epochs, "test_accuracy": accuracy, "best_test_accuracy": accuracy + 1, "best_epoch": 7}
    log = [{"epoch": epoch, "test_accuracy": accuracy - 20 / epoch} for epoch in range(1, epochs + 1)]
    named = {"run": f"{network}{setting}-seed{seed}", "setting": setting, "varied": ""}
    return {**named, "report": report | COUNTS | more, "log": log}


def write(folder, name, runs):
    """Write runs to the result file of a sweep."""
    (folder / f"{name}.json").write_text(json.dumps({"note": "made up", "runs": runs}))

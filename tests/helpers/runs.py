"""The training scripts as tests run them."""

import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import RLock

from tqdm import tqdm

import training
from models import (
    allconv_xcnn,
    base_xcnn,
    mobilenetv2_xcnn,
    resnet_xcnn,
    resnext_xcnn,
    squeezenet_xcnn,
    vgg_xcnn,
    zoo_xcnn,
)

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {  # networks, recipe, recipe for the digits: what a script hands to `main`
    name: ({network.__name__: network for network in networks}, script.RECIPE, script.DIGITS_RECIPE)
    for name, script, networks in (
        ("base", base_xcnn, [base_xcnn.Base]),
        ("vgg", vgg_xcnn, [vgg_xcnn.VGG11]),
        ("allconv", allconv_xcnn, [allconv_xcnn.AllConv]),
        ("resnet", resnet_xcnn, [resnet_xcnn.ResNet18, resnet_xcnn.ResNet34]),
        ("resnext", resnext_xcnn, [resnext_xcnn.ResNeXt29_2x64d]),
        ("mobilenetv2", mobilenetv2_xcnn, [mobilenetv2_xcnn.MobileNetV2]),
        ("squeezenet", squeezenet_xcnn, [squeezenet_xcnn.SqueezeNet]),
    )
}
EVERY_SCRIPT = SCRIPTS | {"zoo": (zoo_xcnn.Library(), zoo_xcnn.RECIPE, None)}


def fork(action: Callable[[], object]) -> int:
    """Call a function in a forked process, which need not import torch again; return the number of the process."""
    pid = os.fork()
    if pid:
        return pid
    tqdm.set_lock(RLock())  # tqdm's own lock is shared by forked processes: one that is killed may leave it locked
    code = 1
    try:
        action()
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def start(script: str, options: str) -> int:
    """Start a run in a forked process; return the number of the process."""
    return fork(partial(training.main, *EVERY_SCRIPT[script], ["--device", "cpu", *options.split()]))


def exit_code(pid: int) -> int:
    """Wait for a process; return its exit code, or minus the signal that has killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

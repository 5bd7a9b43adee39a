"""Distributed training: several processes equal one; lost processes, signals, choice of GPUs."""

import csv
import os
import signal
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from test_distill import write_teacher
from test_faults import run
from torch import distributed as dist
from torch import nn

from data.dataset import EMOTIONS
from engine.distributed import DistributedContext, convert_sync_batch_norm, launch
from models.checkpoint import Checkpoint, save_checkpoint
from models.fernet import Architecture, FERNet
from utils.devices import listed_gpus, pick_device, usable_gpus
from utils.errors import OptionError

ROOT = Path(__file__).resolve().parents[1]
# All 49 images are one batch, so each row of metrics.csv is one step; the shards have 24 and 25.
SETTING = (
    *("--gpu_ids", "-1", "--width", "0.25", "--batch_size", "64", "--dropout", "0", "--mirror"),
    *("--start_lr", "0.02", "--warmup_epoch", "0", "--ema", "0.5", "--amp", "fp32"),
    *("--optimizer", "muon"),
    *(
        "--rank_weight",
        "0",
        "--relabel",
        "scn",
        "--no_importance",
        "--relabel_epoch",
        "2",
        "--margin_2",
        "0.01",
    ),
)
# train.py in double precision: in single precision, rounding alone makes 1e-3 after some steps.
DOUBLE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double
import data.in_memory
import train
import utils.figures
utils.figures.save_figure = lambda figure, path: None
to_device = data.in_memory.to_device
data.in_memory.to_device = lambda tensor, *rest, **options: to_device(
    tensor if tensor.dtype == torch.uint8 else tensor.double(), *rest, **options
)
train.main()
"""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def start(*argv, distributed=True, script=ROOT / "train.py"):
    command = [sys.executable, *(TORCHRUN if distributed else ()), script, *argv]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_two_processes_train_as_one(faces_csv, tmp_path):
    script = tmp_path / "double.py"
    script.write_text(DOUBLE)
    # Five teachers: the second shard starts at image 24, which is not the first teacher's.
    teachers = [write_teacher(tmp_path / f"{seed}.pth", seed, image_width=48) for seed in range(5)]
    architecture = Architecture(width=0.25, downsample="pool", mirror=True)
    torch.manual_seed(0)
    initial = Checkpoint(architecture, FERNet(architecture).state_dict(), EMOTIONS, 48)
    save_checkpoint(tmp_path / "initial.pth", initial)
    argv = ("--data", faces_csv, *SETTING, "--total_epoch", 4, "--teacher", *teachers)
    argv += ("--recipe", "full", "--model_path", tmp_path / "initial.pth", "--freeze_epochs", 1)
    finish(start(*argv, "--out", tmp_path / "one", distributed=False, script=script))
    output = finish(start(*argv, "--out", tmp_path / "two", script=script))
    assert "2 processes" in output
    assert output.count("device   ") == 1  # only the main process prints
    one, two = (table(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    assert one[0].keys() == two[0].keys()
    for a, b in zip(one, two, strict=True):
        numbers = ([float(value) for value in row.values()] for row in (a, b))
        np.testing.assert_allclose(*numbers, rtol=1e-6)
    relabels = (tmp_path / "one/relabels.csv").read_text()
    assert len(relabels.splitlines()) > 10
    assert relabels == (tmp_path / "two/relabels.csv").read_text()
    assert (tmp_path / "one/predictions.csv").read_text() == (
        tmp_path / "two/predictions.csv"
    ).read_text()


@pytest.mark.parametrize(("n", "size"), [(1, 1), (7, 2), (128, 3), (2, 4)])
def test_shards_cover_everything_once(monkeypatch, n, size):
    covered = []
    monkeypatch.setenv("WORLD_SIZE", str(size))
    for rank in range(size):
        monkeypatch.setenv("RANK", str(rank))
        covered += range(n)[DistributedContext().shard(n)]
    assert covered == list(range(n))


def test_one_process_needs_no_process_group():
    context = DistributedContext()
    assert (context.world_size, context.is_main) == (1, True)
    assert (context.any(True), context.gather(3)) == (True, [3])
    with context.initialize(torch.device("cpu")), context.local_main_first():
        assert not dist.is_initialized()


def test_processes_exchange_signals_rarely_on_gpus(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    context = DistributedContext()
    assert all(context.should_sync(i) for i in range(40))  # a batch on a CPU may take minutes
    context.device = torch.device("cuda")
    assert [i for i in range(50) if context.should_sync(i)] == [0, 20, 40]


def test_sync_batch_norm_of_one_process_is_batch_norm(tmp_path):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(2, 16, 3), nn.BatchNorm2d(16))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        pixels = torch.randn(5, 2, 8, 8)
        results = []
        state = {name: value.clone() for name, value in plain.state_dict().items()}
        for network in (plain, convert_sync_batch_norm(deepcopy(plain), torch.device("cpu"))):
            network.load_state_dict(state)
            network.zero_grad()
            x = pixels.clone().requires_grad_()
            y = network.train()(x)
            (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
            results.append([y, x.grad, *(p.grad.clone() for p in network.parameters())])
            results[-1] += [value.clone() for value in network.state_dict().values()]
            results[-1].append(network.eval()(pixels))
        assert type(network[1]) is not nn.BatchNorm2d
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    finally:
        dist.destroy_process_group()


def processes_by_rank(process):
    """Return the process ids of a torchrun's train.py by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for entry in environment if int(status[1]) == process.pid else ():
            if entry.startswith(b"RANK="):
                found[int(entry[5:])] = int(folder.name)
    return found


def wait_for_file(process, file):
    while not file.exists() and process.poll() is None:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0]


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc")


def test_batches_without_an_image_for_each_process_are_refused(faces_csv, tmp_path):
    argv = ("--data", faces_csv, *SETTING, "--no_landmarks", "--out", tmp_path / "r")
    process = start(*argv, "--batch_size", 1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "--batch_size 1 makes batches of 1 of these 49 images" in output
    assert not (tmp_path / "r").exists()


@needs_proc
def test_lost_process_ends_the_run_which_one_process_resumes(faces_csv, tmp_path):
    argv = ("--data", faces_csv, *SETTING, "--no_landmarks", "--out", tmp_path / "r")
    process = start(*argv, "--total_epoch", 40)
    wait_for_file(process, tmp_path / "r/last.pth")
    os.kill(processes_by_rank(process)[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    # torchrun terminates the other process: before it notices the loss, after, or in between.
    messages = ("process 0 lost one of the 2 processes", "Interrupted: checkpoint saved")
    assert any(message in output for message in (*messages, "\nterminated\n")), output
    assert "--resume" in output or "\nterminated\n" in output, output
    run("--resume", tmp_path / "r", "--threads", torch.get_num_threads())
    assert [row["epoch"] for row in table(tmp_path / "r/metrics.csv")] == [
        str(i + 1) for i in range(40)
    ]


@needs_proc
def test_error_before_training_ends_all_processes(tmp_path):
    process = start("--data", tmp_path / "none.csv", *SETTING)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "none.csv: no such file or folder" in output


@needs_proc
def test_signal_to_all_processes_saves_a_checkpoint(faces_csv, tmp_path):
    argv = ("--data", faces_csv, *SETTING, "--batch_size", 8, "--no_landmarks")
    process = start(*argv, "--out", tmp_path / "r", "--total_epoch", 400)
    wait_for_file(process, tmp_path / "r/last.pth")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Interrupted: checkpoint saved" in output
    saved = torch.load(tmp_path / "r/last.pth", weights_only=True)
    assert saved["epoch"] > 0
    assert len(table(tmp_path / "r/metrics.csv")) == saved["epoch"]


def test_launch_starts_one_process_per_device(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # otherwise torchrun sets it for all later tests
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys; from pathlib import Path\n"
        "rank = os.environ['LOCAL_RANK']; Path(sys.argv[1], 'rank' + rank).touch()\n"
        "sys.exit(7 * (rank == '1' and sys.argv[2] == 'fail'))\n"
    )
    for word, status in (("succeed", 0), ("fail", 7)):
        assert launch(str(script), [str(tmp_path), word], 2) == status
    assert {path.name for path in tmp_path.glob("rank*")} == {"rank0", "rank1"}


def simulate_gpus(monkeypatch, fault=None):
    """Simulate three GPUs; `fault` is the error of every operation on them."""
    zeros = torch.zeros

    def make_zeros(*shape, device):
        if fault:
            raise RuntimeError(fault)
        return zeros(*shape)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GTX 1080")
    monkeypatch.setattr(torch, "zeros", make_zeros)


def test_each_process_has_its_own_gpu(monkeypatch):
    assert [listed_gpus(text) for text in ("", "-1", "3", "0,2")] == [[], [-1], [3], [0, 2]]
    for wrong in ("x", "0,0", "0,-1"):
        with pytest.raises(OptionError, match=f"--gpu_ids {wrong}"):
            listed_gpus(wrong)
    simulate_gpus(monkeypatch)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert pick_device("") == torch.device("cuda", 0)
    assert not torch.backends.cudnn.allow_tf32  # convolutions are in float32
    assert pick_device("", 2) == torch.device("cuda", 2)
    assert pick_device("2,0", 1) == torch.device("cuda", 0)
    with pytest.raises(OptionError, match="--gpu_ids 2,0: only train.py uses several GPUs"):
        pick_device("2,0")
    assert pick_device("-1", 5) == torch.device("cpu")
    for ask in (pick_device, usable_gpus):
        with pytest.raises(OptionError, match="there is no GPU 3"):
            ask("0,3")
    with pytest.raises(OptionError, match="--nproc_per_node 1"):
        pick_device("0", 1)


def test_gpu_without_kernels_is_skipped_unless_it_was_given(monkeypatch, capsys):
    simulate_gpus(
        monkeypatch, "CUDA error: no kernel image is available for execution on the device\nmore"
    )
    assert pick_device("") == torch.device("cpu")
    assert "computing on the CPU, because PyTorch" in capsys.readouterr().err
    with pytest.raises(OptionError, match="no kernels for GPU 1, GTX 1080; .* -1, the CPU"):
        pick_device("1")


def test_gpu_that_cannot_be_used_is_an_error(monkeypatch):
    simulate_gpus(monkeypatch, "CUDA error: all CUDA-capable devices are busy or unavailable\nmore")
    with pytest.raises(OptionError, match=r"GPU 0 cannot be used \(CUDA error: [^\n]*\); .* -1"):
        pick_device("")


def test_gpus_that_pytorch_cannot_use_give_a_warning(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("utils.devices.Path.exists", lambda path: False)
    assert pick_device("") == torch.device("cpu")
    assert capsys.readouterr().err == ""  # no GPU here
    monkeypatch.setattr("utils.devices.Path.exists", lambda path: "nvidia" in str(path))
    assert pick_device("") == torch.device("cpu")
    assert "computing on the CPU, because this PyTorch" in (warning := capsys.readouterr().err)
    assert "needs CUDA 13.0, and the NVIDIA driver may be older" in warning
    with pytest.raises(OptionError, match=r"finds 0 CUDA GPUs, because .* may be older"):
        pick_device("0")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert pick_device("") == torch.device("cpu")
    assert "has no CUDA" in capsys.readouterr().err
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the user hides the GPUs
    assert pick_device("") == pick_device("-1") == torch.device("cpu")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": ""}, r"is not a number .*; start several processes with torchrun"),
        ({"WORLD_SIZE": "2"}, r"WORLD_SIZE in the environment is 2, but .*; start several"),
    ],
)
def test_incomplete_environment_of_torchrun_is_an_error(monkeypatch, environment, message):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # It would apply to all later tests.
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    error = pytest.raises(OptionError, match=message)
    with error, DistributedContext().initialize(torch.device("cpu")):
        pytest.fail("there is no process group")


def test_several_gpus_without_nccl_are_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    with (
        pytest.raises(OptionError, match="NCCL"),
        DistributedContext().initialize(torch.device("cuda", 0)),
    ):
        pytest.fail("there is no process group")


def test_divergence_in_one_process_ends_all(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path; import torch\n"
        "from engine.distributed import DistributedContext\n"
        "from engine.divergence import DivergenceGuard; from utils.errors import RunError\n"
        "context = DistributedContext()\n"
        "with context.initialize(torch.device('cpu')):\n"
        "    guard = DivergenceGuard(3, 100, context)\n"
        "    try:\n"
        "        for batch in range(100):\n"
        "            collapsed = context.rank == 1 and batch >= 7\n"
        "            mean = torch.tensor(0.0 if collapsed else 0.5)\n"
        "            guard.update(batch, {'importance_mean': mean})\n"
        "    except RunError as error:\n"
        f"        file = Path({str(tmp_path)!r}, f'rank{{context.rank}}')\n"
        "        file.write_text(f'{batch} {error}')\n"
    )
    finish(start(script=script))
    messages = [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1]
    assert messages[0].startswith("49 the importances collapsed to 0")
    assert "in epoch 3, batch 27: importance_mean = 0." in messages[0]

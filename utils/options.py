"""Every option of a training run, and the recipes: named sets of defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Options:
    """Options of train.py, its command line and the saved config."""

    recipe: Literal["auto", "full", "release", "cpu", "sample"] = "auto"
    """A set of defaults for the options below: full (a GPU), release (half the width, two hours on
    two cores), cpu (half the width, few epochs), sample (a minute on the synthetic faces); auto
    takes full, or sample on the sample."""
    data: str = ""
    """FER2013, RAF-DB or faces of your own in any layout (CSV, folder tree, list files, zip,
    tar.gz), or "sample" for the synthetic faces. By default what lies under data/, else a
    download, else the sample."""
    resume: str = ""
    """Go on with the run in this folder, under its own options."""
    out: str = ""
    """The run folder; by default a new one under model_save/."""
    model_path: tuple[str, ...] = ()
    """Weights to start from: a best.pth of this project, or the original method's resnet18.pth.
    Several are put side by side in one network, whose --width is the sum of theirs."""
    teacher: tuple[str, ...] = ()
    """Weights of trained networks, of any trunk but of the same classes and image_width, from whose
    opinions of each face this one learns (distillation)."""
    teacher_weight: float = 0.7
    """How much the teachers' opinion counts beside the label, 0 to 1."""
    gpu_ids: str = ""
    """The GPUs to train on, such as 0 or 0,1; -1 is the CPU. By default the first GPU, if any."""
    store: Literal["auto", "device", "host", "disk"] = "auto"
    """Where the Training faces wait: on the device, in host memory, or in the cache file on disk;
    auto takes the first that has room."""
    compile: bool = False
    """Let torch.compile write the network's kernels: it takes up to a minute, for use on a GPU."""
    seed: int = 0
    """Two runs with the same seed on one CPU give the same bits."""

    trunk: Literal["resnet18", "vgg11", "vgg13", "vgg16", "vgg19"] = "resnet18"
    """The network's trunk."""
    width: float = 1.0
    """A factor on the trunk's channel counts; 0.5 is about three times faster."""
    image_width: int = 48
    """The side of the faces in pixels, 32 to 224; other faces are resized to it."""
    channels: Literal[1, 3] = 1
    """1 reads faces as grey, 3 as colour."""
    class_names: tuple[str, ...] = ()
    """The classes, in order, of a set of your own; by default FER2013's seven."""
    ferplus: str = ""
    """FER+'s fer2013new.csv: train and test on its labels, eight classes, instead of FER2013's."""
    ferplus_target: Literal["majority", "distribution"] = "majority"
    """What FER+ teaches: the label of most taggers, or the shares of their votes."""
    dropout: float = 0.2
    """The share of features hidden from the classifier while training."""

    importance: bool = True
    """SCN's self-attention importance weighting."""
    importance_smoothing: bool = True
    """Let label smoothing and teachers' opinions move the importances too, as the released weights
    did: the surest faces end with the smallest. Without it, labels alone move them."""
    rank: bool = True
    """SCN's rank regularization, which keeps the importances from all becoming 1."""
    rank_weight: float = 1.0
    """Weight of the rank regularization in the loss."""
    beta: float = 0.7
    """The share of a batch that belongs to the high-importance group."""
    margin_1: float = 0.15
    """How far the mean importances of the two groups should stand apart."""
    relabel: bool = True
    """SCN's relabeling of Training faces."""
    relabel_epoch: int = 100
    """The first epoch that relabels, counted from 1."""
    margin_2: float = 0.2
    """Relabel where the best probability exceeds that of the label by more than this."""
    relabel_group: Literal["low", "all"] = "low"
    """Who may be relabeled: the low-importance group (the paper) or every face (its code)."""
    relabel_logits: Literal["plain", "weighted"] = "plain"
    """What relabeling judges: plain logits, or those weighted by the importance (SCN's code)."""
    label_noise: float = 0.0
    """Share of the Training labels replaced by wrong ones, to see what relabeling finds."""
    landmarks: bool = True
    """The parallel landmark task; --no_landmarks needs no dlib."""
    landmark_pool: bool = False
    """Add features of brows, eyes, nose, mouth and jaw, taken where their landmarks are predicted,
    to those of the whole face."""
    landmark_num: Literal[68] = 68
    """The number of landmarks, always dlib's 68."""
    landmark_weight: float = 2.0
    """Weight of the landmark loss (mean absolute error in half widths of the face)."""

    total_epoch: int = 200
    """Epochs in all."""
    cycles: int = 1
    """How often the learning rate falls to 0 and the sizes are gone through, each time in an equal
    share of the epochs: warm restarts."""
    sizes: tuple[int, ...] = ()
    """Train on smaller faces first: their widths in pixels, each for an equal share of the
    epochs (of a cycle), the last one the image_width; 32 40 48 saves three tenths of the
    arithmetic. A ResNet can begin at 24, a VGG at 32."""
    batch_size: int = 128
    """Faces per step, of all GPUs together."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd is with Nesterov momentum 0.9; adam is AdamW, and a start_lr of about 0.001 fits it."""
    start_lr: float = 0.1
    """The learning rate after the warm-up; it falls to 0 along a cosine."""
    warmup_epoch: float = 5.0
    """Epochs over which the learning rate rises."""
    weight_decay: float = 5e-4
    """On convolution and linear weights (of two dimensions or more), not on biases and batch
    norm."""
    clip: float = 1.0
    """The longest gradient that a step follows: one of a larger norm is scaled down to it, lest a
    whole ResNet-18 lose its importances; 0 leaves all as they are."""
    label_smoothing: float = 0.1
    """The share of each label that is spread over all classes."""
    sam: float = 0.0
    """Sharpness-aware minimization (SAM): how far uphill the gradient is taken, about 0.05 to 0.2;
    it doubles the arithmetic."""
    ema: float = 0.999
    """Decay of the averaged weights, which are evaluated and kept; 0 turns it off."""
    amp: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the convolutions; auto takes bf16 where the hardware computes it."""

    flip: float = 0.5
    """Share of faces mirrored."""
    rotation: float = 15.0
    """Rotation up to so many degrees."""
    scale: float = 0.2
    """Scale between 1 - scale and 1 + scale."""
    shift: float = 0.1
    """Shift up to this share of the width."""
    light: float = 0.3
    """Contrast between 1 - light and 1 + light, and brightness moved by up to half of this share of
    the range of greys."""
    erasing: float = 0.5
    """Share of faces with one rectangle hidden."""
    erased_area: float = 0.2
    """The largest such rectangle, a share of the face."""
    degraded: float = 0.0
    """Share of faces made coarse, as many noisy, as many dark or bright: for use on photographs."""
    jpeg: float = 0.0
    """Share of faces that went through a JPEG file of low quality: likewise."""
    mixup: float = 0.0
    """Share of faces laid over another one, up to half and half, and taught both labels; not in
    the last tenth of the epochs."""
    cutmix: float = 0.0
    """Share of faces of which a square, up to half of the face, is another one's: likewise."""

    jobs: int = 0
    """Processes that look for landmarks; 0 takes one per core."""
    final_test: bool = True
    """Look at PrivateTest at the end, once. Turn it off while you are still choosing."""

    def mixes_in(self, epoch: int) -> bool:
        """Tell whether faces are mixed in an epoch, counted from 1."""
        return self.mixup + self.cutmix > 0 and 10 * epoch <= 9 * self.total_epoch

    def width_in(self, epoch: int) -> int:
        """Return the width in pixels of the faces trained on in an epoch, counted from 1."""
        if not self.sizes:
            return self.image_width
        stages = self.cycles * len(self.sizes)
        return self.sizes[(epoch - 1) * stages // self.total_epoch % len(self.sizes)]


# A short run gains from Adam, small batches and mild changes: in one epoch of FER2013 at a quarter
# of the width they took the accuracy on Training to 45 %, SGD as in the full recipe to 27 %.
_SHORT: dict[str, Any] = {
    "clip": 0.0,
    "optimizer": "adam",
    "start_lr": 0.001,
    "batch_size": 32,
    "warmup_epoch": 1.0,
    "rotation": 10.0,
    "scale": 0.1,
    "shift": 0.05,
}
RECIPES: dict[str, dict[str, Any]] = {
    "full": {},
    # What two hours of two cores allow. Relabeling is off, for where it was measured it does harm
    # (plans/scn.results.csv), and so it is in "cpu".
    "release": {
        "width": 0.5,
        "landmark_pool": True,
        "relabel": False,
        "total_epoch": 51,
        "sizes": (32, 40, 48),
        "warmup_epoch": 3.0,
        "clip": 0.0,
        "erasing": 0.25,
        "degraded": 0.1,
    },
    "cpu": _SHORT
    | {"width": 0.5, "relabel": False, "total_epoch": 20, "relabel_epoch": 15, "erasing": 0.25},
    "sample": _SHORT
    | {
        "width": 0.25,
        "start_lr": 0.002,
        "total_epoch": 16,
        "relabel_epoch": 13,
        "erasing": 0.0,
        "ema": 0.99,
    },
}


def with_recipe(recipe: str) -> Options:
    """Return the defaults of a recipe."""
    return replace(Options(), recipe=recipe, **RECIPES[recipe])


def least_width(trunk: str) -> int:
    """Return the width in pixels of the smallest faces that a trunk can look at.

    A VGG halves them five times. A ResNet could go on below half of FER2013's 48 pixels, but they
    would be read with gaps.
    """
    return 24 if trunk.startswith("resnet") else 32

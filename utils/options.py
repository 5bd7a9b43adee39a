"""Every option of a training run, and the recipes: named sets of defaults."""

import re
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, NonNegativeInt

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Multiplier = Annotated[float, Field(gt=0, le=8)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Width = Annotated[int, Field(ge=24, le=224)]


def _check_backbone(name: str) -> str:
    if not re.fullmatch(r"resnet18|vgg(11|13|16|19)|timm:[\w.-]+", name):
        raise ValueError("choose resnet18, vgg11, vgg13, vgg16, vgg19, or timm:NAME")
    return name


Backbone = Annotated[str, AfterValidator(_check_backbone)]


@dataclass(frozen=True)
class Options:
    """Options of train.py, its command line and the saved config."""

    __pydantic_config__: ClassVar = {"allow_inf_nan": False}

    recipe: Literal["auto", "full", "release", "ferplus", "cpu", "sample", "finetune"] = "auto"
    """Defaults for the options below: full (for a GPU), release (width 0.5, two hours on two
    cores), ferplus (width 0.5, for FER+'s labels; needs --ferplus), cpu (width 0.25, few epochs),
    sample (a minute on the synthetic data set), finetune (few epochs from trained weights). auto is
    finetune with --model_path, else sample for the synthetic data set and full otherwise."""
    data: str = ""
    """A data set (CSV, folders, list files, zip, tar.gz), or "sample" for the synthetic one.
    Default: the data set in data/, else a download, else the synthetic data set."""
    resume: str = ""
    """Resume the run in this folder, with its own options."""
    out: str = ""
    """The run folder. Default: a new folder under model_save/."""
    model_path: tuple[str, ...] = ()
    """Initial weights: a best.pth of this project, or the resnet18.pth of RainbowRui's repository.
    They define the network (such as --width and --mirror) and the normalization. The classes may
    differ: the classifier keeps those of the same name. Several files are merged block-diagonally
    into one network, whose width is the sum of theirs."""
    freeze_epochs: NonNegativeInt = 0
    """With --model_path or --init: train only the heads in this many epochs at the start. The
    backbone and its batch-norm statistics are frozen."""
    teacher: tuple[str, ...] = ()
    """Weights of trained networks whose predictions are soft targets (distillation)."""
    teacher_weight: Fraction = 0.7
    """Weight of the soft targets in the expression loss; the labels have the rest."""
    gpu_ids: str = ""
    """The GPUs to train on, such as 0 or 0,1; -1 is the CPU. Default: the first GPU, if any."""
    threads: NonNegativeInt = 0
    """CPU threads of PyTorch, and processes for the landmarks; 0 is one per idle core."""
    compile: bool = False
    """Use torch.compile. It takes up to a minute and is faster on a GPU."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Random seed. On a CPU, two runs with the same seed, data and --threads are bit-identical."""

    backbone: Backbone = "resnet18"
    """resnet18, vgg11, vgg13, vgg16, vgg19, or a convolutional network of timm, such as
    timm:convnext_atto (needs requirements-timm.txt)."""
    stem: Literal["small", "imagenet"] = "small"
    """First layers of resnet18: a 3 x 3 convolution of stride 1, or those of torchvision (7 x 7 of
    stride 2, and a max-pool), for images of about 224 pixels."""
    init: str = ""
    """Pretrained weights of the backbone: imagenet (a download), or the path of a state dict of
    torchvision or timm. Default: random."""
    width: Multiplier = 1.0
    """Width multiplier of the backbone's channels; 0.5 is about three times as fast."""
    downsample: Literal["stride", "pool"] = "stride"
    """How a ResNet halves its feature map: convolutions of stride 2, or average pooling."""
    mirror: bool = False
    """A mirror-equivariant ResNet, with half of the weights at the same width and speed."""
    image_width: tuple[Width, ...] = (48,)
    """Images are resized to this width in pixels. Several values are progressive resizing: each
    is used for an equal share of the epochs, and the last one for evaluation."""
    channels: Literal[1, 3] = 1
    """1 reads images as grayscale, 3 as RGB; those of a CSV are always grayscale."""
    class_names: tuple[str, ...] = ()
    """The classes of your own data set, in the order of the labels. Default: the folders' names, or
    FER2013's seven."""
    ferplus: str = ""
    """FER+'s fer2013new.csv: train and test on its labels (eight classes) instead of FER2013's."""
    ferplus_target: Literal["majority", "distribution", "mixture"] = "majority"
    """Training target with --ferplus: the majority label, the distribution of the votes, or the
    mean of both."""
    ferplus_test: str = ""
    """FER+'s fer2013new.csv: report how often predictions on FER2013 equal the majority of FER+'s
    annotators (human_agreement in metrics.json). It has no influence on the training."""
    dropout: BelowOne = 0.2
    """Dropout probability of the features before the classifier."""

    importance: bool = True
    """SCN's importance weighting of the logits."""
    rank_weight: NonNegative = 1.0
    """Weight of SCN's rank regularization in the loss; 0 turns it off."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Share of a batch that belongs to the high-importance group."""
    margin_1: NonNegative = 0.15
    """Margin between the mean importances of the two groups."""
    relabel: Literal["none", "ema", "soft", "scn"] = "none"
    """Relabel Training images. ema does it at the end of an epoch, by the mean predictions of the
    EMA of three epochs. soft mixes these with the given labels, as targets. scn relabels the
    low-importance group of each batch in training (SCN)."""
    relabel_epoch: Count = 100
    """The first epoch that relabels, counted from 1. Give it for recipes with fewer epochs."""
    margin_2: Fraction = 0.5
    """Relabel where the largest probability exceeds that of the label by more than this; 0.2 by
    default for scn. For soft, the weight of the given label."""
    relabel_cap: Fraction = 0.1
    """Largest share of a class that --relabel ema relabels."""
    label_noise: BelowOne = 0.0
    """Share of the Training labels that are replaced by wrong ones, to test relabeling."""
    landmarks: bool = True
    """The auxiliary landmark task; --no_landmarks needs no dlib."""
    landmark_pool: bool = False
    """Add features pooled at the predicted landmarks to the globally pooled features."""
    landmark_weight: NonNegative = 2.0
    """Weight of the landmark loss (L1 in normalized coordinates)."""

    total_epoch: Count = 200
    """Number of epochs."""
    batch_size: Count = 128
    """Images per step, of all GPUs together."""
    optimizer: Literal["sgd", "muon", "adam"] = "sgd"
    """sgd has Nesterov momentum 0.9; muon is sgd whose updates of convolutions are orthogonal
    matrices; adam is AdamW, for which --start_lr 0.001 is suitable."""
    start_lr: Annotated[float, Field(gt=0)] = 0.1
    """Peak learning rate, after the warm-up; it then follows a cosine to 0."""
    backbone_lr: Annotated[float, Field(gt=0)] = 1.0
    """A factor on the learning rate of the backbone; fine-tuning has 0.1."""
    warmup_epoch: NonNegative = 5.0
    """Epochs of linear warm-up."""
    weight_decay: NonNegative = 5e-4
    """Weight decay of convolution and linear weights; biases and batch norm have none."""
    clip: NonNegative = 1.0
    """Maximum gradient norm; 0 for none. Without it, the importances may collapse to 0 with sgd, at
    full width or with --mirror (docs/experiments.md)."""
    label_smoothing: BelowOne = 0.1
    """Label smoothing: the share of a label that is spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced weights the expression loss of each image by n / (C n_c), for n Training images of C
    classes, n_c of which have the image's class."""
    ema: BelowOne = 0.999
    """Decay of the exponential moving average of the weights, which is evaluated; 0 for none."""
    amp: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the convolutions; auto is bf16 where the hardware supports it."""

    affine: tuple[NonNegative, NonNegative, BelowOne] = (15.0, 0.1, 0.2)
    """Random geometry: maximum rotation in degrees, maximum translation as a share of the width,
    and s for a scale of 1 - s to 1 + s."""
    color_jitter: NonNegative = 0.3
    """c for a random contrast of 1 - c to 1 + c, and brightness: up to 127.5 c gray levels are
    added or subtracted."""
    erasing: Fraction = 0.5
    """Random-erasing probability."""
    degraded: Fraction = 0.0
    """Probability of each of low resolution, noise and a gamma curve, for use on photographs."""
    jpeg: Fraction = 0.0
    """Probability of JPEG compression of quality 20 to 100, for use on photographs."""
    mild_epochs: NonNegativeInt = 0
    """Number of epochs at the end with mild augmentation: half of --affine and --color_jitter,
    no --erasing."""

    per_class: NonNegativeInt = 0
    """Train on at most this many images of each class, chosen randomly; 0 is all."""
    select: Literal["accuracy", "balanced_accuracy"] = "accuracy"
    """The metric on PublicTest that chooses the epoch of best.pth."""
    final_test: bool = True
    """Evaluate PrivateTest at the end, once. Turn it off while you are still choosing."""

    @property
    def eval_image_width(self) -> int:
        """Image width in pixels of the evaluation, and of the trained network."""
        return self.image_width[-1]

    def image_width_at(self, epoch: int) -> int:
        """Return the width in pixels of the Training images in an epoch, counted from 1."""
        return self.image_width[(epoch - 1) * len(self.image_width) // self.total_epoch]


# Short trainings gain from Adam, small batches and weak augmentation: after one epoch at width 0.25
# the accuracy on Training is 45 %, with the full recipe's SGD 27 %.
_SHORT: dict[str, Any] = {
    **{"batch_size": 32, "affine": (10.0, 0.05, 0.1)},
    **{"optimizer": "adam", "start_lr": 0.001, "warmup_epoch": 1.0, "clip": 0.0},
}
_RELEASE: dict[str, Any] = {
    **{"width": 0.5, "erasing": 0.25, "degraded": 0.1},
    **{"total_epoch": 51, "image_width": (32, 40, 48), "warmup_epoch": 3.0, "clip": 0.0},
}
RECIPES: dict[str, dict[str, Any]] = {
    "full": {},
    "release": _RELEASE | {"landmark_pool": True},
    "ferplus": {
        **_RELEASE,
        **{"mirror": True, "downsample": "pool", "jpeg": 0.3, "mild_epochs": 6, "clip": 1.0},
        **{"ferplus_target": "mixture", "label_smoothing": 0.0},
    },
    "cpu": {
        **_RELEASE,
        **{"width": 0.25, "total_epoch": 15, "relabel_epoch": 10, "optimizer": "muon"},
        **{"mirror": True, "downsample": "pool", "mild_epochs": 3, "clip": 1.0, "ema": 0.99},
    },
    "sample": {
        **_SHORT,
        **{"width": 0.25, "start_lr": 0.002, "total_epoch": 16, "erasing": 0.0, "ema": 0.99},
        **{"relabel": "ema", "relabel_epoch": 13},
    },
    "finetune": _SHORT
    | {"total_epoch": 10, "freeze_epochs": 2, "backbone_lr": 0.1, "erasing": 0.25},
}


def with_recipe(recipe: str) -> Options:
    """Return the defaults of a recipe."""
    return replace(Options(), recipe=recipe, **RECIPES[recipe])


def min_image_width(backbone: str) -> int:
    """Return the smallest image width in pixels that a backbone accepts."""
    # A VGG and most timm networks halve the image five times.
    return 24 if backbone.startswith("resnet") else 32

"""The contestants, as data: a name, and how its awareness terms are built.

Each gives a list of (part, loss): the parts say how the share of the gradient is divided among them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segaware import FPNSegmenter
from segaware.entries import locate, read_config
from segaware.errors import InputError, ModelError, closest
from segaware.evaluation.sources import CAMVID_CLASSES
from segaware.losses.backbone_features import BackboneFeatures
from segaware.losses.consistency import ConsistencyLoss
from segaware.losses.d2sm import D2SMLoss
from segaware.losses.entropy import EntropySegAwareLoss, entropy
from segaware.losses.fisher import FisherLoss
from segaware.losses.guarded_entropy import GuardedEntropyLoss
from segaware.losses.jacobian import JacobianLoss
from segaware.losses.judge_pool import JudgePoolLoss
from segaware.losses.perceptual import PerceptualLoss
from segaware.losses.pseudo_label import PseudoLabelLoss
from segaware.losses.sensitivity import SensitivityLoss
from segaware.losses.task import TaskLoss
from segaware.registry import build
from segaware.segmenters.adapters import SegmenterAdapter
from segaware.training.data import Patches

Terms = list[tuple[float, nn.Module]]


class Skip(Exception):
    """A contestant that cannot take part here, with the reason."""


def features(segmenter: nn.Module, clean: list[Tensor], *levels: int) -> BackboneFeatures:
    """Levels of a segmenter's backbone on one scale: backbones differ by orders of magnitude, and a pool of them would be a pool of one."""
    try:
        return BackboneFeatures(segmenter, levels).calibrate(clean)
    except ModelError as error:
        raise Skip(str(error)) from error


class Detached(nn.Module):
    """A loss as the authors' release computes it: from pixels that have left autograd."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss, self.name = loss, f"{loss.name}_detached"

    def forward(self, denoised: Tensor) -> Tensor:
        return self.loss(denoised.detach())


class Kit:
    """What losses are built from. ``random``: the trained segmenters are replaced by untrained ones of the same form."""

    def __init__(self, setting, random: bool = False) -> None:
        self.setting, self.random = setting, random

    @property
    def home(self) -> nn.Module:
        return self.pool[0]

    @property
    def pool(self) -> list[nn.Module]:
        if not self.random:
            return self.setting.home()
        return self.setting.once("untrained", lambda: [self._untrained(s) for s in self.setting.args.segmenter])

    @property
    def judges(self) -> list[nn.Module]:
        """Of a judge pool."""
        if len(self.pool) < 2:
            raise Skip("a pool of one is none: needs a second --segmenter")
        return self.pool

    @property
    def second(self) -> nn.Module:
        if len(self.pool) < 2:
            raise Skip("needs a second --segmenter of another family")
        return self.pool[1]

    @property
    def imagenet(self) -> nn.Module:
        """torchvision's SqueezeNet 1.0 with the given weights; wants ImageNet's normalisation."""
        if self.setting.args.imagenet is None:
            raise Skip("needs --imagenet, SqueezeNet 1.0 weights under torchvision's names")
        return self.setting.imagenet()

    @property
    def classifier(self) -> nn.Module:
        return self.setting.once("classifier", lambda: SegmenterAdapter(self.imagenet, 1000, stride=0))

    def usaid(self, classes: int = 21, *, calibrated: bool = False, seed: int = 0) -> nn.Module:
        """The paper's USA module: a random frozen head as released, on an ImageNet backbone (there ResNet-101).

        ``calibrated``: its last layer is scaled so that the entropy on clean patches is half of log K.
        """
        if self.setting.args.imagenet is None:
            raise Skip("needs --imagenet, SqueezeNet 1.0 weights under torchvision's names")

        def make():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                net = FPNSegmenter(classes, "squeezenet1_0", self.setting.args.imagenet, 256, head="released").eval()
            if calibrated:
                self._to_half_entropy(net)
            return net

        return self.setting.once(f"usaid {classes} {calibrated} {seed}", make)

    def clean(self, count: int = 4) -> list[Tensor]:
        """Batches of clean patches from the training images."""
        patches = Patches(self.setting.training_images(), self.setting.recipe(seed=12_345))
        return [patches[step].clean for step in range(min(count, len(patches)))]

    @torch.no_grad()
    def _to_half_entropy(self, net: FPNSegmenter) -> None:
        logits = torch.cat([net(images) for images in self.clean()])
        low, high = -5.0, 15.0  # powers of two
        for _ in range(30):
            middle = (low + high) / 2
            if float(entropy(logits * 2**middle, normalize=True)) > 0.5:
                low = middle
            else:
                high = middle
        net.classify.weight.mul_(2**low)

    def _untrained(self, spec: str) -> nn.Module:
        config = read_config(locate(spec))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = build(config["architecture"], config["arguments"])
            norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
            for norm in norms:  # or its features would have no common scale
                norm.reset_running_stats()
                norm.momentum = None
            net.train()
            with torch.no_grad():
                for images in self.clean():  # dropout, where there is one, by the same seed
                    net(images)
        return net.eval()


@dataclass(frozen=True)
class Entrant:
    """One contestant.

    Args:
        group: "control", "seed" (of the papers) or "later".
        what: one line for readers.
        terms: builds its awareness terms.
        swept: whether it has a weight to choose.
        labels: "none", "true" (supervised) or "maps" (sensitivity maps in the place of labels).
        random: whether it has a twin with an untrained segmenter, ``NAME@random``.
        labelled: which of ``--segmenter`` must know the classes of the labels.
    """

    group: str
    what: str
    terms: Callable[[Kit], Terms]
    swept: bool = True
    labels: str = "none"
    random: bool = False
    labelled: int | None = None


def one(make: Callable[[Kit], nn.Module]) -> Callable[[Kit], Terms]:
    return lambda kit: [(1.0, make(kit))]


def liu(kit: Kit) -> nn.Module:
    return ConsistencyLoss(features=features(kit.home, kit.clean(), 0))


ENTRANTS: dict[str, Entrant] = {
    # controls
    "fidelity": Entrant("control", "no awareness", lambda kit: [], swept=False),
    "perceptual-imagenet": Entrant(
        "control", "early ImageNet features (SqueezeNet), no segmenter",
        one(lambda kit: PerceptualLoss(kit.imagenet, ["features.1", "features.4"])),
    ),
    # seeds: what the papers do
    "usaid": Entrant("seed", "U-SAID as its paper: entropy, random frozen head on an ImageNet backbone",
                     one(lambda kit: EntropySegAwareLoss(kit.usaid()))),
    "usaid-calibrated": Entrant("seed", "U-SAID, its head scaled to half of the largest entropy on clean patches",
                                one(lambda kit: EntropySegAwareLoss(kit.usaid(calibrated=True)))),
    "usaid-marginal": Entrant("seed", "U-SAID, its head scaled as in usaid-calibrated, minus the entropy of the mean prediction",
                              one(lambda kit: EntropySegAwareLoss(kit.usaid(calibrated=True), balance=1.0))),
    "released-detached": Entrant("seed", "U-SAID's released loss: own arg-max, focal, no gradient (forensic)",
                                 one(lambda kit: Detached(PseudoLabelLoss(kit.usaid()))), swept=False),
    "released-attached": Entrant("seed", "U-SAID's released loss with its gradient",
                                 one(lambda kit: PseudoLabelLoss(kit.usaid()))),
    "entropy": Entrant("seed", "entropy of a trained segmenter", one(lambda kit: EntropySegAwareLoss(kit.home)), random=True),
    "ssaid-literal": Entrant("seed", "S-SAID with a random head: cross-entropy with true labels",
                             one(lambda kit: TaskLoss(kit.usaid(len(CAMVID_CLASSES)), resize="labels")), labels="true"),
    "ssaid": Entrant("seed", "S-SAID with a trained head: cross-entropy with true labels",
                     one(lambda kit: TaskLoss(kit.home, resize="labels")), labels="true", random=True, labelled=0),
    "liu-perceptual": Entrant("seed", "Liu's feature term: features at stride 4 of the trained segmenter", one(liu), random=True),
    "liu-joint": Entrant("seed", "Liu's joint loss: features and true segmentation labels",
                         lambda kit: [(0.5, liu(kit)), (0.5, TaskLoss(kit.home, resize="labels"))], labels="true", random=True,
                         labelled=0),
    "liu-joint-classes": Entrant(
        "seed", "Liu's joint loss with SqueezeNet: features, and its own class of the clean patch as label",
        lambda kit: [(2 / 3, PerceptualLoss(kit.imagenet, ["features.5"])),
                     (1 / 3, PseudoLabelLoss(kit.classifier, focus=0, teacher="self"))]),
    "dms": Entrant("seed", "DMS: true labels through a segmenter of another family (the second)",
                   one(lambda kit: TaskLoss(kit.second)), labels="true", random=True, labelled=1),
    # later work and ours, all without labels
    "features-mid": Entrant("later", "segmenter's features, middle level",
                            one(lambda kit: ConsistencyLoss(features=features(kit.home, kit.clean(), 1))), random=True),
    "features-last": Entrant("later", "segmenter's features, last level",
                             one(lambda kit: ConsistencyLoss(features=features(kit.home, kit.clean(), -1))), random=True),
    "kl": Entrant("later", "KL to the prediction on the clean image", one(lambda kit: ConsistencyLoss(kit.home)), random=True),
    "kl-t3": Entrant("later", "KL to the prediction on the clean image, at temperature 3", one(lambda kit: ConsistencyLoss(kit.home, temperature=3.0)), random=True),
    "features-kl": Entrant("later", "middle features and KL, half of the gradient each",
                           lambda kit: [(0.5, ConsistencyLoss(features=features(kit.home, kit.clean(), 1))), (0.5, ConsistencyLoss(kit.home))], random=True),
    "features-entropy": Entrant("later", "middle features and entropy of the trained segmenter, half of the gradient each",
                                lambda kit: [(0.5, ConsistencyLoss(features=features(kit.home, kit.clean(), 1))), (0.5, EntropySegAwareLoss(kit.home))], random=True),
    "jacobian": Entrant("later", "Jacobian-weighted fidelity, exact", one(lambda kit: JacobianLoss(kit.home)), random=True),
    "fisher": Entrant("later", "Fisher-weighted fidelity, exact", one(lambda kit: FisherLoss(kit.home)), random=True),
    "sensitivity": Entrant("later", "cached diagonal of the Jacobian: no segmenter in the loop",
                           one(lambda kit: SensitivityLoss()), labels="maps", random=True),
    "guarded-entropy": Entrant("later", "entropy of sure pixels, class shares of the clean image held",
                               one(lambda kit: GuardedEntropyLoss(kit.home)), random=True),
    "d2sm": Entrant("later", "D2SM from its formula, SqueezeNet features in the place of VGG-19's",
                    one(lambda kit: D2SMLoss(kit.imagenet.features, queue=128, patch=48, normalize="imagenet"))),
    "d2sm-clean": Entrant("later", "D2SM, both sides compared with the clean memory",
                          one(lambda kit: D2SMLoss(kit.imagenet.features, queue=128, patch=48, normalize="imagenet",
                                                   anchors="clean"))),
    "pool-features": Entrant("later", "judge pool on the features (middle level)",
                             one(lambda kit: JudgePoolLoss(kit.judges, lambda net: ConsistencyLoss(features=features(net, kit.clean(), 1)))), random=True),
    "pool-kl": Entrant("later", "judge pool on KL", one(lambda kit: JudgePoolLoss(kit.judges)), random=True),
    "pool-jacobian": Entrant("later", "judge pool on the Jacobian", one(lambda kit: JudgePoolLoss(kit.judges, JacobianLoss)), random=True),
}  # fmt: skip

TWIN = "@random"


def entrant(name: str) -> Entrant:
    """By name; ``NAME@random`` is the twin with an untrained segmenter."""
    base = name.removesuffix(TWIN)
    if base not in ENTRANTS or (base != name and not ENTRANTS[base].random):
        raise InputError(f"no contestant {name!r}; {closest(name, every())}")
    return ENTRANTS[base]


def every() -> list[str]:
    """All names, controls first; twins are controls."""
    twins = [name + TWIN for name, found in ENTRANTS.items() if found.random]
    order = [name for name, found in ENTRANTS.items() if found.group == "control"]
    return order + twins + [name for name in ENTRANTS if name not in order]


def group(name: str) -> str:
    return "control" if name.endswith(TWIN) else entrant(name).group


def resolve(words: list[str]) -> list[str]:
    """Names, groups (control, seed, later) and "all" -> names, each once, in the table's order."""
    wanted = set()
    for word in words:
        if word in ("control", "seed", "later"):
            wanted |= {name for name in every() if group(name) == word}
        elif word == "all":
            wanted |= set(every())
        else:
            entrant(word)
            wanted.add(word)
    return [name for name in every() if name in wanted]


def kit_of(setting, name: str) -> Kit:
    return Kit(setting, random=name.endswith(TWIN))

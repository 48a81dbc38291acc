import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.datasets import FakeData
from torchvision.transforms import v2

import segaware
from segaware import Denoise, DnCNN, FFDNet
from segaware.errors import InputError, ModelError, WeightsError


@pytest.fixture
def network():
    return DnCNN(depth=3, width=4).eval()


@pytest.fixture
def transform(network):
    return Denoise(network)


@pytest.fixture
def image():
    return torch.rand(3, 13, 18)


class Samples(Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 4

    def __getitem__(self, index):
        pixels = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(index))
        return self.transform(tv_tensors.Image(pixels), index)


def test_it_is_what_denoise_says(transform, network, image):
    assert torch.equal(transform(image), segaware.denoise(image, network))
    assert torch.equal(transform(image[None]), segaware.denoise(image[None], network))


def test_only_the_image_changes(transform, image):
    sample = {
        "image": tv_tensors.Image(image),
        "mask": tv_tensors.Mask(torch.randint(5, (13, 18))),
        "boxes": tv_tensors.BoundingBoxes(torch.tensor([[1, 2, 5, 9]]), format="XYXY", canvas_size=(13, 18)),
        "label": torch.tensor([1.0, 2.0]),
        "name": "a",
    }
    after = transform(sample)
    assert type(after["image"]) is tv_tensors.Image and not torch.equal(after["image"], sample["image"])
    assert all(after[key] is sample[key] for key in ("mask", "boxes", "label", "name"))
    assert torch.equal(sample["image"], image)  # not in place


def test_a_lone_mask_is_left_alone(transform):
    mask = tv_tensors.Mask(torch.randint(5, (1, 13, 18)))
    assert transform(mask) is mask


@pytest.mark.parametrize("white", [255, 65535])
def test_integers_stay_integers(transform, image, white):
    dtype = torch.uint8 if white == 255 else torch.uint16
    whole = (image * white).round().to(dtype)
    after = transform(tv_tensors.Image(whole))
    assert type(after) is tv_tensors.Image and after.dtype == dtype
    expected = transform(whole.float() / white).clamp(0, 1) * white
    assert (after.float() - expected).abs().max() <= 0.501


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_floats_keep_their_type_and_are_not_clamped(transform, image, dtype):
    after = transform((3 * image - 1).to(dtype))
    assert after.dtype == dtype and float(after.min()) < 0 < 1 < float(after.max())


def test_pillow_images_keep_mode_and_alpha(transform):
    rgba = Image.fromarray(np.random.default_rng(0).integers(0, 256, (13, 18, 4), dtype=np.uint8))
    after = transform(rgba)
    assert after.mode == "RGBA" and np.array_equal(np.array(after)[..., 3], np.array(rgba)[..., 3])
    assert transform(rgba.convert("L")).mode == "L"


def test_videos_and_further_axes(transform, image):
    clip = tv_tensors.Video(torch.stack([image, image.flip(-1)]))
    after = transform(clip)
    assert type(after) is tv_tensors.Video and torch.allclose(after[0], transform(image), atol=1e-6)
    assert torch.equal(transform(clip.as_subclass(torch.Tensor)[None])[0], after.as_subclass(torch.Tensor))


def test_gray_through_colour_and_colour_through_gray(transform, image):
    gray = transform(image[:1])
    assert gray.shape == (1, 13, 18) and torch.allclose(gray, transform(image[:1].expand(3, -1, -1)).mean(0, keepdim=True))
    single = Denoise(DnCNN(channels=1, depth=3, width=4))
    assert torch.allclose(single(image)[1:2], single(image[1:2]), atol=1e-6)


def test_the_noise_level(image):
    network = FFDNet(depth=3, width=32).eval()
    assert torch.equal(Denoise(network, sigma=0.1)(image), segaware.denoise(image, network, sigma=0.1))
    assert torch.equal(Denoise(network, sigma="auto")(image), segaware.denoise(image, network, sigma="auto"))
    assert not torch.equal(Denoise(network, sigma=0.1)(image), Denoise(network, sigma=0.4)(image))


def test_no_gradient_and_no_parameters(transform, image):
    assert not transform(image.requires_grad_()).requires_grad
    assert not list(transform.parameters()) and not transform.state_dict()


def test_it_composes(transform, image):
    chain = v2.Compose([v2.ToDtype(torch.uint8, scale=True), transform, v2.ToDtype(torch.float32, scale=True)])
    assert torch.allclose(chain(image), transform(image).clamp(0, 1), atol=0.02)
    assert "DnCNN" in repr(chain) and "sigma=None" in repr(chain)


def test_it_travels(shipped, image):
    by_name = Denoise("segaware-blind")
    assert len(pickle.dumps(by_name)) < 2000  # the name, not the weights
    assert torch.equal(pickle.loads(pickle.dumps(by_name))(image), by_name(image))
    given = Denoise(FFDNet(depth=3, width=4), sigma=0.1)
    assert torch.equal(pickle.loads(pickle.dumps(given))(image), given(image))


def test_it_works_in_the_workers_of_a_data_loader(transform):
    loaded = [DataLoader(Samples(transform), batch_size=2, num_workers=workers) for workers in (0, 2)]
    for (here, one), (there, other) in zip(*loaded, strict=True):
        assert torch.allclose(here, there, atol=1e-6) and torch.equal(one, other)


@pytest.mark.slow
def test_it_works_in_workers_that_are_spawned(transform):
    # a data set of torchvision's: a spawned process imports what it is sent, and test modules are no package
    made = FakeData(4, (3, 13, 18), transform=v2.Compose([v2.ToImage(), transform]))
    here = next(iter(DataLoader(made, batch_size=4)))
    there = next(iter(DataLoader(made, batch_size=4, num_workers=1, multiprocessing_context="spawn")))
    assert here[0].dtype == torch.uint8 and (here[0].int() - there[0].int()).abs().max() <= 1


def test_wrong_arguments_are_refused_when_built(network):
    with pytest.raises(InputError, match="25/255"):
        Denoise(FFDNet(depth=3, width=4), sigma=25)
    with pytest.raises(InputError, match="sigma='auto'"):
        Denoise(FFDNet(depth=3, width=4))
    for sigma in (0.1, "auto"):
        with pytest.raises(InputError, match="blind"):
            Denoise(network, sigma=sigma)
    with pytest.raises(InputError, match="one number"):
        Denoise(FFDNet(depth=3, width=4), sigma=torch.tensor([0.1, 0.2]))
    with pytest.raises(WeightsError, match="unknown model"):
        Denoise("dncnn-blnd")
    with pytest.raises(ModelError, match="wrap it"):
        Denoise(torch.nn.Conv2d(3, 3, 3))
    with pytest.raises(InputError, match="device 'cpux' is unknown"):
        Denoise(network, device="cpux")


def test_wrong_images_are_refused(transform):
    with pytest.raises(InputError, match="add its channels"):
        transform(torch.rand(8, 8))
    with pytest.raises(InputError, match="ToDtype"):
        transform(torch.zeros(3, 8, 8, dtype=torch.int64))
    with pytest.raises(InputError, match="alpha"):
        transform(torch.rand(4, 8, 8))
    with pytest.raises(InputError, match="divide by 255"):
        transform(torch.rand(3, 8, 8) * 255)
    with pytest.raises(InputError, match="empty"):
        transform(torch.rand(0, 3, 8, 8))


def test_pictures_lie_as_the_boxes_beside_them(network):
    """A camera's note of how to turn a picture is handed on, not followed."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.info["exif"] = exif.tobytes()
    clean = Denoise(network)(picture)
    assert clean.size == (20, 12) and clean.getexif()[0x0112] == 6 and picture.getexif()[0x0112] == 6
    expected = segaware.denoise(np.asarray(picture), network)
    assert np.array_equal(np.asarray(clean), expected)

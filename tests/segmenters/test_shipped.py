"""The segmenter that ships: whole, licensed, and no stranger to its own classes."""

import torch

from segaware.entries import load_entry, read_config, shipped_folder


def test_fpn_camvid_is_whole():
    folder = shipped_folder("fpn-camvid")
    assert (folder / "model.safetensors").stat().st_size < 3_000_000
    assert "Redistribution" in (folder / "LICENSE-squeezenet").read_text()
    assert read_config(folder)["measured"]["camvid_val"]["miou"] >= 60
    net = load_entry(folder)
    assert all(torch.isfinite(value).all() for value in net.state_dict().values())
    assert (net.num_classes, net.stride, net.class_names[0]) == (11, 4, "sky")


def test_fpn_camvid_sees_sky_above_road():
    net = load_entry(shipped_folder("fpn-camvid"))
    image = torch.full((1, 3, 192, 256), 0.85)  # bright above, dark gray below
    image[..., 96:, :] = 0.3
    with torch.no_grad():
        guess = net(image).argmax(1)[0]
    assert (guess[:16] == net.class_names.index("sky")).float().mean() > 0.5
    assert (guess[-16:] == net.class_names.index("road")).float().mean() > 0.5

"""The smallest residual networks, with the shape of an input of each."""

from __future__ import annotations

from locojax.nn import resnet, resnet_3d, resnet_v1

_CLIPS = {"width": 2, "dropout": 0.0, "bn_group_size": 1, "stage_sizes": (1,)}
SMALLEST = {
  "resnet": (resnet.PreActResNet(2, (1,), width=2), (4, 4, 1)),
  "resnet_v1": (resnet_v1.ResNet(50, "c3", 2, (1,) * 4), (8, 8, 1)),
  "resnet_3d": (resnet_3d.ResNet3D(2, **_CLIPS), (2, 4, 4, 1)),
}

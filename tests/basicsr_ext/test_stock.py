"""BasicSR's models and networks without CUDA, and the names of other copies of BasicSR."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from basicsr.archs.basicvsrpp_arch import BasicVSRPlusPlus
from basicsr.archs.stylegan2_arch import StyleGAN2Discriminator, StyleGAN2Generator
from basicsr.losses.gan_loss import r1_penalty
from basicsr.models.sr_model import SRModel
from basicsr.ops.dcn import DeformConv, ModulatedDeformConv
from basicsr.utils import USMSharp
from basicsr.utils.registry import MODEL_REGISTRY

from basicsr_ext import forks
from basicsr_ext.aliases import translate
from basicsr_ext.options import parse_yaml, prepare_options
from basicsr_ext.registry import _reads, build_model, check_names
from basicsr_ext.stock import StockModel
from kbnet_plugin.errors import BadInput


@pytest.mark.parametrize("groups", [1, 2])
def test_deformable_convolutions_without_offsets_are_convolutions(groups):
    x = torch.randn(1, 8, 9, 7)
    plain = DeformConv(8, 6, 3, padding=1, deformable_groups=groups)
    assert torch.allclose(
        plain(x, torch.zeros(1, 18 * groups, 9, 7)), F.conv2d(x, plain.weight, padding=1), atol=1e-5
    )
    modulated = ModulatedDeformConv(8, 6, 3, padding=1, deformable_groups=groups)
    halved = modulated(x, torch.zeros(1, 18 * groups, 9, 7), torch.full((1, 9 * groups, 9, 7), 0.5))
    expected = F.conv2d(x, modulated.weight / 2, modulated.bias, padding=1)
    assert torch.allclose(halved, expected, atol=1e-5)


def test_stylegan_is_differentiable_twice():
    generator = StyleGAN2Generator(8, num_style_feat=4, num_mlp=1, narrow=0.02)
    images, _ = generator([torch.randn(2, 4)])
    network = StyleGAN2Discriminator(8, narrow=0.02)
    images = images.detach().requires_grad_()
    r1_penalty(network(images), images).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_basicvsrpp_aligns_on_the_cpu_too():
    network = BasicVSRPlusPlus(mid_channels=16, num_blocks=1)
    assert network.is_with_alignment


class Model(SRModel):
    """Asks for CUDA in every way that BasicSR's models do."""

    def __init__(self, opt):
        self.opt, self.is_train, self.device = opt, False, torch.device("cpu")
        self.sharpen = USMSharp().cuda()
        self.queue = torch.zeros(2, dtype=torch.float64).cuda()
        self.results = torch.zeros(3, device="cuda")

    def optimize_parameters(self, current_iter):
        self.moved = torch.ones(1).to("cuda:0")
        if current_iter == 2:
            raise NotImplementedError

    def test(self):
        return None


@pytest.fixture
def model():
    return type("Model", (StockModel, Model), {})({"num_gpu": 0, "model_type": "Model", "dist": False})


def test_a_model_that_asks_for_cuda_stays_where_the_options_say(model):
    model.optimize_parameters(1)
    placed = {model.sharpen.kernel.device, model.queue.device, model.results.device, model.moved.device}
    assert placed == {torch.device("cpu")}
    assert model.queue.dtype is torch.float64


def test_only_basicsrs_own_errors_become_one_line(model, monkeypatch):
    with pytest.raises(NotImplementedError):  # a plugin's author needs the traceback
        model.optimize_parameters(2)
    monkeypatch.setattr(Model, "__module__", "basicsr.models.some_model")
    with pytest.raises(BadInput, match=r"^Model: NotImplementedError: "):
        model.optimize_parameters(2)


def test_a_model_without_its_files_says_so(pairs):
    options = parse_yaml(NAFNET) | {"model_type": "VideoRecurrentModel"}
    options["network_g"] = {"type": "BasicVSR", "num_feat": 4, "num_block": 1, "spynet_path": "spynet.pth"}
    options = prepare_options(options, "video.yml", train=False) | {"rank": 0, "dist": False, "num_gpu": 0}
    with pytest.raises(BadInput, match=r"^VideoRecurrentModel cannot be built .*spynet\.pth: no such file"):
        build_model(options)


def test_changing_the_shape_of_a_batch_leaves_the_model_alone(model):
    data = {"lq": torch.zeros(1, 2, 3, 4, 4)}
    model.feed_data(data)
    data["lq"].squeeze_(0)  # as VideoRecurrentModel's validation does
    assert model.lq.shape == (1, 2, 3, 4, 4)


def test_the_target_of_the_last_batch_is_not_that_of_an_image_without_one(model):
    model.feed_data({"lq": torch.zeros(2, 3, 4, 4), "gt": torch.zeros(2, 3, 4, 4)})
    model.feed_data({"lq": torch.zeros(1, 3, 4, 4)})
    model.output = model.lq
    assert "gt" not in model.get_current_visuals()


@pytest.mark.parametrize(("step", "frozen"), [(2, {"spynet"}), (5, set())])
def test_a_resumed_video_model_freezes_its_flow_again(model, step, frozen):
    model.net_g = torch.nn.ModuleDict({"spynet": torch.nn.Linear(1, 1), "other": torch.nn.Linear(1, 1)})
    model.fix_flow_iter = 5
    model._freeze_again(step)
    assert {n.split(".")[0] for n, p in model.net_g.named_parameters() if not p.requires_grad} == frozen


NAFNET = """
name: NAFNet-SIDD-width32
model_type: ImageRestorationModel
scale: 1
num_gpu: 8
datasets:
  train:
    type: PairedImageDataset
    dataroot_gt: data/gt
    dataroot_lq: data/lq
    filename_tmpl: '{}'
    io_backend: {type: disk}
    gt_size: 16
    use_flip: true
    use_rot: false
    num_worker_per_gpu: 0
    batch_size_per_gpu: 2
    dataset_enlarge_ratio: 1
    prefetch_mode: ~
  val: {type: PairedImageDataset_SIDD, dataroot_gt: data/gt, dataroot_lq: data/lq, io_backend: {type: disk}}
network_g: {type: NAFNet, width: 4, enc_blk_nums: [1], middle_blk_num: 1, dec_blk_nums: [1]}
path: {pretrain_network_g: ~, strict_load_g: true, resume_state: ~}
train:
  optim_g: {type: AdamW, lr: !!float 1e-3, weight_decay: 0., betas: [0.9, 0.9]}
  scheduler: {type: TrueCosineAnnealingLR, T_max: 200000, eta_min: !!float 1e-7}
  total_iter: 200000
  warmup_iter: -1
  mixup: false
  pixel_opt: {type: PSNRLoss, loss_weight: 1, reduction: mean}
val:
  val_freq: !!float 2e4
  save_img: false
  grids: true
  crop_size: 256
  trans_num: 1
  use_image: false
  metrics: {psnr: {type: calculate_psnr, crop_border: 0, test_y_channel: false}}
"""


@pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated:DeprecationWarning")  # by spandrel
def test_nafnets_file_runs_as_it_is(pairs):
    pytest.importorskip("spandrel")
    options = prepare_options(parse_yaml(NAFNET), "nafnet.yml", train=True)
    options |= {"rank": 0, "world_size": 1, "dist": False, "num_gpu": 0}
    check_names(options, "nafnet.yml")
    model = build_model(options)
    assert type(model.net_g).__name__ == "NAFNet"
    assert model.grad_clip == 0.01  # NAFNet's model clips unless told otherwise
    assert options["val"]["tile"] == 256
    train, val = options["datasets"].values()
    assert (train["use_hflip"], val["type"]) == (True, "PairedImageDataset")
    assert "use_flip" not in train
    assert any("ImageRestorationModel" in note for note in options["notes"])
    model.feed_data({"lq": torch.rand(1, 3, 8, 8), "gt": torch.rand(1, 3, 8, 8)})
    model.optimize_parameters(1)


def test_translating_changes_nothing_in_a_file_of_ours():
    options = {"model_type": "ImageCleanModel", "val": {"grids": True}, "train": {"mixup": False}}
    assert translate(options) == (options, [])


def test_without_spandrel_its_networks_say_what_to_install(monkeypatch):
    monkeypatch.setitem(forks.NETWORKS, "Absent", "no_such_package")
    with pytest.raises(BadInput, match=r"Python package no_such_package: pip install no_such_package$"):
        forks.network("Absent")
    assert forks.network("Other") is None


@pytest.mark.parametrize("tile", [None, {"tile_size": 16, "tile_pad": 8}])
def test_hats_models_restore_whole_windows(tile):
    shapes = []

    def network(x):
        shapes.append(x.shape[-2:])
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    module = type("Net", (torch.nn.Module,), {"forward": lambda self, x: network(x)})()
    image = torch.rand(1, 3, 30, 43)
    opt = {"network_g": {"window_size": 8}, "scale": 2, "tile": tile}
    model = SimpleNamespace(opt=opt, net_g=module, lq=image)
    MODEL_REGISTRY.get("HATModel").test(model)
    assert torch.equal(model.output, network(image))
    assert all(side % 8 == 0 for shape in shapes[:-1] for side in shape)
    assert (len(shapes) > 2) == bool(tile)


def test_a_loss_that_a_model_would_ignore_is_noted():
    assert _reads(SRModel, "perceptual_opt")
    assert not _reads(SRModel, "fft_opt")  # SAFMN's copy of SRModel has it


@pytest.mark.parametrize(("name", "noted"), [("EDVRModel", 1), ("SRGANModel", 0)])
def test_a_network_that_a_model_would_ignore_is_noted(name, noted):
    options = {"model_type": name, "is_train": True, "as_given": {}, "datasets": {}, "train": {}, "notes": []}
    options |= {"network_g": {"type": "EDVR"}, "network_d": {"type": "VGGStyleDiscriminator"}}
    check_names(options, "gan.yml")
    assert options["notes"] == [f"network_d has no effect: {name} has no such network"] * noted

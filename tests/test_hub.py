"""Image backbones of keras-hub, built small from their configs, without weights.

Run where keras-hub is installed: `pip install keras-hub`.
"""

import keras
import pytest
from exactness import check_exact, close_at_random, randomise

import filterprune

hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed").models
IMAGE = (64, 64, 3)


def resnet(block="basic_block", pre=False, stem=(64,), sizes=(7,)):
    return hub.ResNetBackbone(
        input_conv_filters=list(stem),
        input_conv_kernel_sizes=list(sizes),
        stackwise_num_filters=[64, 64, 64],
        stackwise_num_blocks=[2, 2, 2],
        stackwise_num_strides=[1, 2, 2],
        block_type=block,
        use_pre_activation=pre,
        image_shape=IMAGE,
    )


def densenet():
    return hub.DenseNetBackbone(
        stackwise_num_repeats=[2, 3, 2],
        compression_ratio=0.5,
        growth_rate=16,
        image_shape=IMAGE,
    )


def vgg():
    return hub.VGGBackbone(
        stackwise_num_repeats=[1, 1, 2],
        stackwise_num_filters=[16, 32, 32],
        image_shape=IMAGE,
    )


def cspnet(block="dark_block", stage="csp"):
    return hub.CSPNetBackbone(
        stem_filters=16,
        stem_kernel_size=3,
        stem_strides=1,
        stackwise_depth=[1, 2, 2],
        stackwise_strides=[1, 2, 2],
        stackwise_num_filters=[16, 32, 64],
        block_type=block,
        stage_type=stage,
        image_shape=IMAGE,
    )


def xception():
    return hub.XceptionBackbone(
        stackwise_conv_filters=[[16, 16], [32, 32], [32, 64]],
        stackwise_pooling=[True, True, False],
        image_shape=IMAGE,
    )


def efficientnet(block="v1"):
    return hub.EfficientNetBackbone(
        stackwise_kernel_sizes=[3, 3, 5],
        stackwise_num_repeats=[1, 2, 2],
        stackwise_input_filters=[32, 16, 24],
        stackwise_output_filters=[16, 24, 40],
        stackwise_expansion_ratios=[1, 6, 6],
        stackwise_strides=[1, 2, 2],
        stackwise_squeeze_and_excite_ratios=[0.25, 0.25, 0.25],
        stackwise_block_types=[block] * 3,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        image_shape=IMAGE,
    )


def deeplab():
    return hub.DeepLabV3Backbone(
        image_encoder=resnet(),
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P4",
        dilation_rates=[2, 4],
        upsampling_size=4,
        image_shape=IMAGE,
    )


def retinanet():
    return hub.RetinaNetBackbone(
        image_encoder=resnet(), min_level=2, max_level=4, use_p5=False
    )


def classifier():
    return hub.ResNetImageClassifier(
        backbone=resnet(), num_classes=5, preprocessor=None
    )


def mit():
    return hub.MiTBackbone(
        layerwise_depths=[1, 1],
        image_shape=IMAGE,
        hidden_dims=[16, 32],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[4, 2],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
    )


def segformer():
    return hub.SegFormerBackbone(image_encoder=mit(), projection_filters=32)


WHOLE = {
    "ResNet": resnet,
    "ResNet bottleneck": lambda: resnet("bottleneck_block"),
    "ResNetV2": lambda: resnet("bottleneck_block", pre=True),
    "ResNet-vd": lambda: resnet(
        "bottleneck_block_vd", stem=(32, 32, 64), sizes=(3, 3, 3)
    ),
    "DenseNet": densenet,
    "VGG": vgg,
    "CSPDarkNet": lambda: cspnet(stage="dark"),
    "Xception": xception,
    "EfficientNet": efficientnet,
    "ResNet classifier": classifier,
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_backbone_is_exact(name, dtype):
    keras.config.set_floatx(dtype)
    model = randomise(WHOLE[name]())
    report = filterprune.analyze(model)
    assert report.barriers == ()
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    assert check_exact(masked).count_params() < 0.7 * model.count_params()


COMPOSITE = {
    "EfficientNetV2 fused": lambda: efficientnet("fused"),
    "EfficientNetV2 unfused": lambda: efficientnet("unfused"),
    "DeepLabV3": deeplab,
    "RetinaNet": retinanet,
    "SegFormer": segformer,
}


NOTHING_ELSE = ("EfficientNetV2 fused", "EfficientNetV2 unfused")


@pytest.mark.parametrize("name", COMPOSITE)
def test_composite_layers_are_barriers_and_all_else_is_pruned(name):
    model = randomise(COMPOSITE[name]())
    report = filterprune.analyze(model)
    assert report.barriers and all("composite" in b for b in report.barriers)
    assert bool(report.prunable) == (name not in NOTHING_ELSE)
    if report.prunable:
        masked = filterprune.wrap_model(model)
        close_at_random(masked)
        check_exact(masked)

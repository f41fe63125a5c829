"""Image backbones and tasks of keras-hub, built small from their configs."""

from keras_hub import models as hub

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


def cross_stage(stage, block="bottleneck_block"):
    return hub.CSPNetBackbone(
        stem_filters=32,
        stem_kernel_size=3,
        stem_strides=2,
        stackwise_depth=[1, 2],
        stackwise_strides=[2, 2],
        stackwise_num_filters=[32, 64],
        block_type=block,
        stage_type=stage,
        bottle_ratio=[0.5],
        block_ratio=[0.5],
        expand_ratio=[1.0],
        image_shape=IMAGE,
    )


def mobilenet():
    return hub.MobileNetBackbone(
        stackwise_expansion=[[40, 56], [64, 144]],
        stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[16, 16], [24, 24]],
        stackwise_kernel_size=[[3, 3], [5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1, 1], [2, 2]],
        output_num_filters=64,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=64,
        squeeze_and_excite=0.5,
        image_shape=IMAGE,
    )


def hgnet():
    return hub.HGNetV2Backbone(
        depths=[1, 2],
        embedding_size=32,
        hidden_sizes=[64, 128],
        stem_channels=[3, 16, 32],
        hidden_act="relu",
        use_learnable_affine_block=True,
        stackwise_stage_filters=[(32, 16, 64, 1, 1, 3), (64, 32, 128, 2, 1, 3)],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, False],
        image_shape=IMAGE,
    )


def vit():
    return hub.ViTBackbone(
        image_shape=IMAGE,
        patch_size=16,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
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


def classifier(task, backbone):
    return task(backbone=backbone(), num_classes=5, preprocessor=None)


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
    "CSPNet (csp)": lambda: cross_stage("csp"),
    "CSPNet (cs3)": lambda: cross_stage("cs3", "edge_block"),
    "ResNet classifier": lambda: classifier(hub.ResNetImageClassifier, resnet),
    "DenseNet classifier": lambda: classifier(hub.DenseNetImageClassifier, densenet),
    "VGG classifier": lambda: classifier(hub.VGGImageClassifier, vgg),
    "Xception classifier": lambda: classifier(hub.XceptionImageClassifier, xception),
    "EfficientNet classifier": lambda: classifier(
        hub.EfficientNetImageClassifier, efficientnet
    ),
}

# Made of composite layers, which are taken apart.
COMPOSITE = {
    "DeepLabV3": deeplab,
    "EfficientNetV2 fused": lambda: efficientnet("fused"),
    "EfficientNetV2 unfused": lambda: efficientnet("unfused"),
    "MiT": mit,
    "SegFormer": segformer,
    "MobileNet": mobilenet,
    "HGNetV2": hgnet,
}

# With a composite layer that is kept.
KEPT = {"RetinaNet": retinanet}

TEXT = {
    "vocabulary_size": 50,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 16,
    "intermediate_dim": 24,
    "max_sequence_length": 12,
}


def deit():
    return hub.DeiTBackbone(
        image_shape=(32, 32, 3),
        patch_size=8,
        num_layers=2,
        num_heads=4,
        hidden_dim=16,
        intermediate_dim=24,
    )


def whisper():
    text = {key: value for key, value in TEXT.items() if "sequence" not in key}
    return hub.WhisperBackbone(
        max_encoder_sequence_length=20, max_decoder_sequence_length=12, **text
    )


def vit_tiny():
    """ViT-Tiny: 12 blocks of 3 heads of 64 dimensions."""
    return hub.ViTBackbone(
        image_shape=IMAGE,
        patch_size=16,
        num_layers=12,
        num_heads=3,
        hidden_dim=192,
        mlp_dim=768,
    )


def t5():
    text = {key: value for key, value in TEXT.items() if "sequence" not in key}
    return hub.T5Backbone(**text)


def swin():
    return hub.SwinTransformerBackbone(
        image_shape=IMAGE,
        patch_size=4,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
    )


def fnet():
    text = {key: value for key, value in TEXT.items() if key != "num_heads"}
    return hub.FNetBackbone(**text)


# A transformer whose blocks cannot be called with symbolic tensors.
CLOSED_BOXES = {"FNet": fnet}

DECODER = {key: value for key, value in TEXT.items() if "sequence" not in key}
QUERIES = {
    **{key: value for key, value in DECODER.items() if key != "num_heads"},
    "num_query_heads": 4,
    "num_key_value_heads": 2,
}
FALCON = {**DECODER, "num_attention_heads": DECODER["num_heads"]}
FALCON.pop("num_heads")

# Decoders that make their masks and positions for a sequence of any length.
DECODERS = {
    "Llama": lambda: hub.LlamaBackbone(**QUERIES),
    "Gemma": lambda: hub.GemmaBackbone(**QUERIES, head_dim=8),
    "Mistral": lambda: hub.MistralBackbone(**QUERIES, sliding_window=6),
    "Qwen": lambda: hub.QwenBackbone(**QUERIES),
    "Qwen3": lambda: hub.Qwen3Backbone(**QUERIES, head_dim=8, sliding_window_size=6),
    "Phi-3": lambda: hub.Phi3Backbone(**QUERIES),
    "Bloom": lambda: hub.BloomBackbone(**DECODER),
    "Falcon": lambda: hub.FalconBackbone(**FALCON),
    "GPT-NeoX": lambda: hub.GPTNeoXBackbone(**DECODER, rotary_percentage=0.5),
    "T5": t5,
}

TRANSFORMERS = {
    "ViT-Tiny": vit_tiny,
    "ViT": vit,
    "ViT classifier": lambda: classifier(hub.ViTImageClassifier, vit),
    "DeiT": deit,
    "BERT": lambda: hub.BertBackbone(**TEXT),
    "DistilBERT": lambda: hub.DistilBertBackbone(**TEXT),
    "RoBERTa": lambda: hub.RobertaBackbone(**TEXT),
    "GPT-2": lambda: hub.GPT2Backbone(**TEXT),
    "OPT": lambda: hub.OPTBackbone(**TEXT),
    "BART": lambda: hub.BartBackbone(**TEXT),
    "Whisper": whisper,
    "Swin": swin,
}


def dinov2():
    return hub.DINOV2Backbone(
        patch_size=16,
        num_layers=2,
        hidden_dim=32,
        num_heads=4,
        intermediate_dim=48,
        image_shape=IMAGE,
        position_embedding_shape=IMAGE,
    )


def clip():
    vision = hub.CLIPVisionEncoder(16, 32, 2, 4, 48, image_shape=IMAGE)
    text = hub.CLIPTextEncoder(50, 32, 32, 2, 4, 48, max_sequence_length=12)
    return hub.CLIPBackbone(vision, text, 16)


def task(cls, backbone, **kwargs):
    return cls(backbone=backbone, preprocessor=None, **kwargs)


# Saved by their classes: with layers that have no config, or a function that Keras does
# not find, and layers called inside of a nested model and outside.
SAVED = {
    "HGNetV2": hgnet,
    "DINOv2": dinov2,
    "CLIP": clip,
    "GPT-2 language model": lambda: task(hub.GPT2CausalLM, hub.GPT2Backbone(**TEXT)),
    "BERT classifier": lambda: task(
        hub.BertTextClassifier, hub.BertBackbone(**TEXT), num_classes=3
    ),
    "DeepLabV3 segmenter": lambda: task(
        hub.DeepLabV3ImageSegmenter, deeplab(), num_classes=3
    ),
    "SegFormer segmenter": lambda: task(
        hub.SegFormerImageSegmenter, segformer(), num_classes=3
    ),
}

# With a head that reads their width, so that this goes too.
LANGUAGE_MODELS = {
    f"{name} language model": lambda name=name, cls=cls: task(cls, DECODERS[name]())
    for name, cls in {
        "Llama": hub.LlamaCausalLM,
        "Gemma": hub.GemmaCausalLM,
        "Mistral": hub.MistralCausalLM,
        "Qwen": hub.QwenCausalLM,
        "Phi-3": hub.Phi3CausalLM,
        "Bloom": hub.BloomCausalLM,
        "Falcon": hub.FalconCausalLM,
    }.items()
}

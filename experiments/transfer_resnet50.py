r"""A ResNet-50 that has learnt ImageNet, fine-tuned on a small folder of your own images.

  flaxcls weights import --model=resnet50 --weights=resnet50.safetensors \
      --workdir=runs/resnet50_imported
  flaxcls train --config=transfer_resnet50 \
      --config.data.source=folder:PATH

PATH holds a folder for each class, or train/ and val/ with such folders. The new classifier learns
ten times as fast as the rest; --config.freeze='stem,bn_stem,stage*' trains it alone.
Hardware: one GPU (time not measured).
Expected: what your images allow; there is no published number. Not run.
"""

import flaxcls


def get_config():
    config = flaxcls.default_config()
    config.model.name = 'resnet50'
    config.init_from = 'runs/resnet50_imported'
    config.data.source = 'folder:photos'
    config.data.eval_crop_fraction = 224 / 256
    config.augment.crop = 'random_resized'
    config.augment.min_area = 0.25
    config.augment.flip = True
    config.label_smoothing = 0.1
    config.batch_size = 32
    config.num_epochs = 20
    config.log_every_steps = 10
    config.optimizer.learning_rate = 0.003
    config.optimizer.rules = 'head:lr=10'
    config.schedule.name = 'cosine'
    config.schedule.warmup_epochs = 1
    return config

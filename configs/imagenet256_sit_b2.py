"""SiT-B/2 on latents of ImageNet at 256×256, hyper-parameters of the paper.

  guidedflow train --config=configs/imagenet256_sit_b2.py --workdir=runs/sit_b2

reads latents, 32×32×4, from data/imagenet256: those of Stable Diffusion's autoencoder, which is not
part of this package yet; `guidedflow.data.write_latents` stores what another program computes. The
papers mirror pictures at random: write each latent of its mirrored picture too.
Ma et al. 2024, section 3; batch 256, 400,000 steps.

Meant for eight GPUs. Not run: the tests take a step of it on made-up latents with a small network,
and trace its own.
"""

from ml_collections import ConfigDict

from guidedflow.training.config import defaults


def get_config() -> ConfigDict:
    """Velocity on the linear path, in DiT's network and with its AdamW; time enters unscaled."""
    config = defaults()
    config.dataset.name = "latents:data/imagenet256"
    config.dataset.held_out = ""
    config.held_out.every = 0
    config.network.preset = "DiT-B/2"
    config.network.double_channels = False
    config.network.scan_layers = True
    config.network.time_scale = 1.0
    config.steps = 400_000
    config.batch = 256
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warm_up = 0
    config.optimizer.schedule = "constant"
    config.optimizer.clip = 0.0
    config.ema.decay, config.ema.warm_up = 0.9999, False
    config.input.threads = 4
    config.log.every = 100
    config.checkpoint.every = config.sample.every = 10_000
    config.checkpoint.keep_every = 100_000
    config.sample.classes = 10
    return config

"""DiT-XL/2 on latents of ImageNet at 256×256, hyper-parameters of the paper.

  guidedflow train --config=configs/imagenet256_dit_xl2.py --workdir=runs/dit_xl2

reads latents, 32×32×4, from data/imagenet256: those of Stable Diffusion's autoencoder, which is not
part of this package yet; `guidedflow.data.write_latents` stores what another program computes. The
papers mirror pictures at random: write each latent of its mirrored picture too.
Peebles & Xie 2023, section 4; batch 256, 7,000,000 steps.

Here t is continuous between the table's steps, and the variance is not learned, so the network has
the four channels of the latents.

Meant for a pod: 32 GPUs or TPU chips; docs/multihost.md has the launch. Not run: the tests take a
step of it on made-up latents with a small network, and trace its own.
"""

from ml_collections import ConfigDict

from guidedflow.training.config import defaults


def get_config() -> ConfigDict:
    """Noise prediction on DDPM's 1,000 linear betas; AdamW at a constant rate, nothing else."""
    config = defaults()
    config.dataset.name = "latents:data/imagenet256"
    config.dataset.held_out = ""
    config.held_out.every = 0
    config.network.preset = "DiT-XL/2"
    config.network.double_channels = False
    config.network.scan_layers = True
    config.network.remat = "dots"
    config.parallel.strategy = "fsdp"
    config.path.name = "ddpm_linear"
    config.predicts = "noise"
    config.steps = 7_000_000
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

"""The official release's training step, for benchmark_gpu.py: its networks and losses, imported from a checkout.

The release's training loop cannot be called without its data, so the step is written here from the formulas
(`encoder_loss`, `decoder_loss`), with every pass that the release makes: encoder and decoder are frozen in turn, images
are decoded again for the decoder, the target of the reconstructions keeps its gradient in the encoder's loss, and
γ_r = 1e-8 costs two decodings. As in the release, each step ends with a check for NaN and a transfer of its terms.
"""

import contextlib
import importlib
import io
import sys
import time
from pathlib import Path
from unittest import mock

import torch

# Imports of the release's module for data, figures and metrics, which the step does not need.
UNUSED = (
    *("torchvision", "torchvision.utils", "torchvision.datasets", "torchvision.transforms"),
    *("matplotlib", "matplotlib.pyplot", "tqdm", "dataset", "metrics", "metrics.fid_score"),
)
GAMMA_R = 1e-8


def load(folder: str):
    """The release's module for images, from a checkout."""
    stand_ins = {name: mock.MagicMock() for name in UNUSED}
    sys.path.insert(0, str(Path(folder) / "soft_intro_vae"))
    try:
        with mock.patch.dict(sys.modules, stand_ins):
            return importlib.import_module("train_soft_intro_vae")
    finally:
        sys.path.pop(0)


class Contiguous(torch.nn.Module):
    """Makes a tensor contiguous, as the release reshapes its networks' outputs as if channels came first in memory."""

    def forward(self, x):
        return x.contiguous()


class Step:
    """The adversarial step on one batch of noise that stays on the device."""

    def __init__(self, release, config, how: str):
        self.release, self.how, self.weights = release, how, config.objective
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.batch, self.z_dim = config.train.batch_size, config.model.z_dim
        shape = (config.data.image_channels, config.data.image_size, config.data.image_size)
        with contextlib.redirect_stdout(io.StringIO()):
            self.model = release.SoftIntroVAE(shape[0], self.z_dim, list(config.model.channels), shape[1])
        self.model = self.model.to(self.device).train()
        self.scale = 1 / (shape[0] * shape[1] * shape[2])
        rate = config.optimizer.learning_rate
        self.encoder, self.decoder = self.model.encoder, self.model.decoder
        if how != "eager":
            self.encoder.main.add_module("contiguous", Contiguous())
            self.decoder.main.add_module("contiguous", Contiguous())
            self.model.to(memory_format=torch.channels_last)
        torch.backends.cudnn.benchmark = how == "tuned"
        self.adam = {net: torch.optim.Adam(net.parameters(), lr=rate) for net in (self.encoder, self.decoder)}
        self.x = torch.rand((self.batch, *shape), device=self.device)

    def run(self, steps: int) -> float:
        """Runs this many steps. Returns the seconds that they took."""
        began = time.perf_counter()
        for _ in range(steps):
            self.update()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def update(self) -> list[float]:
        """One step. Returns its terms, on the host."""
        prior = torch.randn(self.batch, self.z_dim).to(self.device)
        with self.training(self.encoder):
            with self.precision():
                encoder_loss, z, terms = self.encoder_loss(prior)
            self.minimise(self.encoder, encoder_loss)
        with self.training(self.decoder):
            with self.precision():
                decoder_loss, more = self.decoder_loss(prior, z.detach())
            self.minimise(self.decoder, decoder_loss)
        if torch.isnan(encoder_loss) or torch.isnan(decoder_loss):
            raise ArithmeticError("the official step diverged")
        return [term.detach().cpu().item() for term in (*terms, *more)]

    @contextlib.contextmanager
    def training(self, network):
        """Enables gradients for this network only."""
        for net in (self.encoder, self.decoder):
            for parameter in net.parameters():
                parameter.requires_grad = net is network
        yield

    def precision(self):
        on = self.how in ("autocast", "tuned")
        return torch.autocast(self.device.type, torch.bfloat16, enabled=on)

    def minimise(self, network, loss) -> None:
        self.adam[network].zero_grad()
        loss.backward()
        self.adam[network].step()

    def rec(self, x, x_hat, reduction: str = "mean"):
        return self.release.calc_reconstruction_loss(x, x_hat, "mse", reduction)

    def kl(self, mean, logvar, reduction: str = "mean"):
        return self.release.calc_kl(logvar, mean, reduce=reduction)

    def encoder_loss(self, prior):
        """L_E, the latents of the batch, and terms."""
        fake = self.model.sample(prior)
        mean, logvar = self.model.encode(self.x)
        z = self.release.reparameterize(mean, logvar)
        recon = self.model.decode(z)
        rec, kl = self.rec(self.x, recon), self.kl(mean, logvar)
        exps = [self.exp_elbo(y) for y in (recon, fake)]
        real = self.scale * (self.weights.beta_rec * rec + self.weights.beta_kl * kl)
        return real + sum(exps) / 4, z, (kl, *exps)

    def exp_elbo(self, y):
        """exp(-2s·(β_rec·rec(y) + β_neg·kl(y))), the batch's mean."""
        mean, logvar, _, y_hat = self.model(y.detach())
        energy = self.weights.beta_rec * self.rec(y, y_hat, "none") + self.weights.beta_neg * self.kl(
            mean, logvar, "none"
        )
        return torch.exp(-2 * self.scale * energy).mean()

    def decoder_loss(self, prior, z):
        """L_D and terms."""
        fake, recon = self.model.sample(prior), self.model.decode(z)
        rec = self.rec(self.x, recon)
        kls, recs = zip(*(self.again(y) for y in (recon, fake)), strict=True)
        adversarial = self.weights.beta_kl * sum(kls) / 2 + GAMMA_R * self.weights.beta_rec * sum(recs) / 2
        return self.scale * (self.weights.beta_rec * rec + adversarial), (rec, *kls)

    def again(self, y):
        """kl(y), with its gradient, and the error of decoding y again, with the gradient of that decoding only."""
        mean, logvar = self.model.encode(y)
        y_hat = self.model.decode(self.release.reparameterize(mean, logvar).detach())
        return self.kl(mean, logvar), self.rec(y.detach(), y_hat)


def prepare(folder: str, config, how: str) -> Step:
    """how: eager, channels_last, autocast (channels last too) or tuned (and cuDNN's search for the fastest kernel)."""
    return Step(load(folder), config, how)


def about(step: Step) -> dict:
    """The device and versions that are reported with the speed."""
    cuda = step.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "peak_bytes_seen": torch.cuda.max_memory_allocated() if cuda else None,
        "torch": torch.__version__,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
    }

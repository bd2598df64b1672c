"""The page: the results of `views` in Gradio components, with a tab for each view that the model has."""

import functools
import html
import os
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before it is imported

import gradio as gr
import numpy as np

from sintrovae_jax.errors import Unavailable, UserError
from sintrovae_jax.explore.uploads import Uploads
from sintrovae_jax.explore.views import HOTTEST, REACH, Views
from sintrovae_jax.models import Model

_IN_TURN = "all in turn"


def page(model: Model, name: str = "") -> gr.Blocks:
    """The page for a model. name: the model's name on the page."""
    return _Page(model, name).blocks


class _Page:
    """Builds the page. Computes every output once, so that everything is compiled and no output is empty."""

    def __init__(self, model: Model, name: str) -> None:
        self.views = Views(model)
        self.uploads = Uploads(model) if self.views.kind == "images" else None
        title = name or model.config.data.source
        self.blocks = gr.Blocks(title=f"{title} - sintrovae_jax", analytics_enabled=False, delete_cache=(3600, 3600))
        with self.blocks:
            gr.Markdown(f"## {html.escape(title)}\n{self.views.summary()}.")
            with gr.Tabs():
                for view in self.views.can():
                    getattr(self, f"_{view}")()

    # --- tabs ---------------------------------------------------------------------------------------------------------

    def _sample(self) -> None:
        views = self.views
        with gr.Tab("Sample"):
            with gr.Row():
                seed = _seed()
                spread = gr.Slider(
                    *((0, 1) if views.truncates else (0, HOTTEST)),
                    value=1,
                    step=0.05,
                    label="Truncation" if views.truncates else "Temperature of the prior",
                    min_width=240,
                )
                label = self._class(in_turn=True)
            both = "Samples, and the density that the encoder sees"
            picture = _picture(views.sample(0), both if views.kind == "points" else "Samples")
            if views.kind == "points":
                gr.Markdown("There is no other tab: a 2D density has no pictures.")
        inputs = [seed, spread, label]

        def sample(seed: object, spread: object, label: object) -> np.ndarray:
            return views.sample(seed, spread, _label(label))

        self._answer("sample", sample, inputs, [picture], inputs)

    def _latents(self) -> None:
        views = self.views
        place = views.place(None, 0)
        with gr.Tab("Latents"):
            with gr.Row():
                with gr.Column(min_width=280):
                    seed, label = _seed(), self._class()
                    upload = self._upload("A picture, instead of the sample")
                with gr.Column(scale=2, min_width=300):
                    values = views.sliders(place)
                    moved = _picture(views.edited(place, list(values)), "The start, and where the sliders are")
                    sliders = self._sliders(values)
            caption = "A column for each slider, in their order: at -3, -1, 1 and 3, while the others stay"
            table = _picture(views.traversed(place), caption)
            self._conversion()
        start = [seed, label, upload]

        def begin(seed: object, label: object, upload: object) -> list[Any]:
            place = views.place(self._read(upload), seed, _label(label))
            values = views.sliders(place)
            return [*values, views.edited(place, list(values)), views.traversed(place)]

        def move(seed: object, label: object, upload: object, *values: object) -> np.ndarray:
            return views.edited(views.place(self._read(upload), seed, _label(label)), list(values))

        # For a picture, BatchNorm uses other averages, so decoding is another program.
        self._warm(lambda x: (views.edited(p := views.place(x, 0), list(views.sliders(p))), views.traversed(p)))
        self._answer("latents_start", begin, start, [*sliders, moved, table], start)
        self._answer("latents", move, [*start, *sliders], [moved], sliders, event="input")

    def _score(self) -> None:
        views = self.views
        with gr.Tab("Score"):
            with gr.Row():
                with gr.Column(min_width=240):
                    seed, label = _seed(), self._class()
                    samples = gr.Slider(20, 1000, 60, step=20, label="Importance samples")
                    upload = self._upload("A picture, instead of the sample")
                with gr.Column(scale=2, min_width=300):
                    picture, text = views.score(None, 0)
                    shown = _picture(picture, "The picture, its reconstruction, and the error of every pixel")
                    told = gr.Markdown(text)
            self._conversion()
        inputs = [upload, seed, samples, label]

        def score(upload: object, seed: object, samples: object, label: object) -> tuple[np.ndarray, str]:
            return views.score(self._read(upload), seed, samples, _label(label))

        self._answer("score", score, inputs, [shown, told], [upload, seed, label])
        self._answer("", score, inputs, [shown, told], [samples], event="release")

    def _interpolate(self) -> None:
        views = self.views
        with gr.Tab("Interpolate"):
            with gr.Row():
                ends = [self._end(f"{which} picture", seed) for seed, which in enumerate(("First", "Last"))]
            paths = list(views.model.paths)
            path = gr.Radio(paths, value=paths[0], label="Path through latent space")
            made = views.interpolated(None, None, 0, 1)
            caption = "The first picture, decoded points between both latents, and the last picture"
            picture = _picture(made, caption)
            self._conversion()
        (seed_a, label_a, a), (seed_b, label_b, b) = ends
        inputs = [a, b, seed_a, seed_b, path, label_a, label_b]

        def interpolate(a, b, seed_a, seed_b, path, label_a, label_b):
            labels = _label(label_a), _label(label_b)
            return views.interpolated(self._read(a), self._read(b), seed_a, seed_b, path, *labels)

        for path_name in paths[1:]:
            views.interpolated(None, None, 0, 1, path_name)
        self._answer("interpolate", interpolate, inputs, [picture], inputs)

    def _mix(self) -> None:
        views = self.views
        with gr.Tab("Mix"):
            with gr.Row():
                rows, columns = _seed(0, "Seed of the rows"), _seed(1, "Seed of the columns")
                most = views.layers
                layers = gr.Slider(0, most, most // 2, step=1, label=f"Layers of the row, of {most}", min_width=240)
                truncation = gr.Slider(0, 1, 1, step=0.05, label="Truncation", min_width=240)
            caption = "The first layers of each picture have its row's style, the others its column's style"
            picture = _picture(views.mixed(0, 1, most // 2), caption)
        inputs = [rows, columns, layers, truncation]
        self._answer("mix", views.mixed, inputs, [picture], inputs)

    def _translate(self) -> None:
        views = self.views
        with gr.Tab("Translate"):
            with gr.Row():
                (seed_a, _, a), (seed_b, _, b) = self._end("First picture", 0), self._end("Second picture", 1)
            made = views.translated(None, None, 0, 1)
            picture = _picture(made, "Every picture has its column's class and its row's content")
            self._conversion()
        inputs = [a, b, seed_a, seed_b]

        def translate(a: object, b: object, seed_a: object, seed_b: object) -> np.ndarray:
            return views.translated(self._read(a), self._read(b), seed_a, seed_b)

        self._answer("translate", translate, inputs, [picture], inputs)

    # --- shared -------------------------------------------------------------------------------------------------------

    def _end(self, name: str, seed: int) -> tuple[gr.Number, gr.components.Component, gr.components.Component]:
        """The inputs of one of two pictures: seed, class and upload."""
        with gr.Column(min_width=240):
            return (
                _seed(seed, f"{name}: seed of a sample"),
                self._class(),
                self._upload(f"{name}, instead of the sample"),
            )

    def _upload(self, name: str) -> gr.components.Component:
        """The component to upload a picture; for models of other data, a state that is always empty."""
        if self.uploads is None:
            return gr.State(None)
        return gr.Image(type="filepath", label=name, sources=["upload", "clipboard"], height=180)

    def _conversion(self) -> None:
        """Shows how uploaded pictures are converted."""
        if self.uploads is not None:
            gr.Markdown(self.uploads.conversion)

    def _sliders(self, values: Sequence[float]) -> list[gr.Slider]:
        """Sliders for the latent dimensions that are used most, in two columns."""
        kl, made, half = self.views.kl, list[gr.Slider](), -(-len(values) // 2)
        named = [(f"Dimension {i} (KL {kl[i]:.2f} nats)", v) for i, v in zip(self.views.order, values, strict=True)]
        gr.Markdown("The latent dimensions that are used most, in standard deviations of the prior")
        with gr.Row():
            for part in (named[:half], named[half:]):
                with gr.Column(min_width=220):
                    made += [gr.Slider(-REACH, REACH, v, step=0.01, label=name) for name, v in part]
        return made

    def _class(self, in_turn: bool = False) -> gr.components.Component:
        """The component to choose a class, for a conditional model; for others, a state that is always None."""
        if not self.views.classes:
            return gr.State(None)
        choices = [str(i) for i in range(self.views.classes)]
        first = [_IN_TURN] if in_turn else []
        return gr.Dropdown([*first, *choices], value=(first or choices)[0], label="Class")

    def _read(self, upload: object) -> np.ndarray | None:
        """The picture of an upload as Gradio describes it; None without an upload."""
        if upload is None:
            return None
        path = upload.get("path") if isinstance(upload, dict) else None
        if self.uploads is None or not isinstance(path, str):
            raise UserError("this is no uploaded picture")
        return self.uploads.read(path)

    def _warm(self, function: Callable[[np.ndarray], object]) -> None:
        """Compiles the computations that start from a picture."""
        if self.uploads is not None:
            function(np.zeros(self.uploads.form.shape, np.float32))

    def _answer(
        self,
        name: str,
        function: Callable[..., Any],
        inputs: Sequence[gr.components.Component],
        outputs: Sequence[gr.components.Component],
        changing: Sequence[gr.components.Component],
        event: str = "change",
    ) -> None:
        """Calls the function with the inputs whenever one of `changing` changes. name: its name in the API; '': none.

        A visitor's mistake is shown as one line on the page. Inputs are not preprocessed, because Gradio would open
        pictures in this process; `views` and `uploads` check them.
        """

        @functools.wraps(function)
        def answer(*values: object) -> Any:
            try:
                return function(*values)
            except (UserError, Unavailable) as error:
                raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from None

        triggers = [getattr(component, event) for component in changing if not isinstance(component, gr.State)]
        gr.on(
            triggers,
            answer,
            list(inputs),
            list(outputs),
            api_name=name or None,
            api_visibility="public" if name else "private",
            preprocess=False,
            show_progress="hidden",
            trigger_mode="always_last",
        )


def _seed(value: int = 0, name: str = "Seed") -> gr.Number:
    return gr.Number(value, label=name, precision=0, minimum=0, maximum=2**32 - 1, min_width=120)


def _label(chosen: object) -> object:
    """A chosen class, as `views` takes it."""
    if isinstance(chosen, str) and chosen.isdecimal():
        return int(chosen)
    return None if chosen == _IN_TURN else chosen


def _picture(value: np.ndarray, caption: str) -> gr.Image:
    gr.Markdown(caption)  # a label would cover part of the picture
    buttons = ["download", "fullscreen"]
    return gr.Image(value, show_label=False, format="png", interactive=False, buttons=buttons)

"""What `export` writes is played by a browser: Chromium decodes every frame, to the end, with the right brightness."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipelines.bench.local import archive_model
from pipelines.export import export
from tests.archived_model import archived_child, archived_model
from tests.fixtures import write_safetensors

PLAY = """async ([data, times]) => {
  const video = document.createElement("video");
  video.muted = true;
  video.src = "data:video/mp4;base64," + data;
  document.body.append(video);
  const event = name => new Promise((done, failed) => {
    video.addEventListener(name, done, {once: true});
    video.addEventListener("error", () => failed(video.error.message), {once: true});
  });
  if (video.readyState < 2) await event("loadeddata");
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  const context = canvas.getContext("2d", {willReadFrequently: true});
  const means = [];
  for (const time of times) {
    const there = event("seeked");
    const shown = new Promise(done => video.requestVideoFrameCallback(done));
    video.currentTime = time;
    await there;
    await Promise.race([shown, new Promise(done => setTimeout(done, 1000))]);  // none comes for the frame that is there
    context.drawImage(video, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    let sum = 0;
    for (let i = 0; i < pixels.length; i += 4) sum += pixels[i];
    means.push(sum / (pixels.length / 4));
  }
  video.currentTime = 0;
  video.playbackRate = 8;
  const ended = event("ended");
  await video.play();
  await ended;
  return {means, duration: video.duration, width: video.videoWidth, height: video.videoHeight};
}"""


def played(browser: Any, path: Path) -> dict[str, Any]:
    """Play a video to its end; what the browser saw in the middle of each frame, beside what FFmpeg decodes."""
    with av.open(str(path)) as file:
        rate = float(file.streams.video[0].average_rate or 0)
        frames = [frame.to_ndarray(format="gray") for frame in file.decode(video=0)]
    page = browser.new_page()
    try:
        times = [(i + 0.5) / rate for i in range(len(frames))]
        seen = page.evaluate(PLAY, [base64.b64encode(path.read_bytes()).decode(), times])
    finally:
        page.close()
    assert (seen["height"], seen["width"]) == frames[0].shape
    assert seen["duration"] == pytest.approx(len(frames) / rate, abs=0.1)
    assert np.allclose(seen["means"], [frame.mean() for frame in frames], atol=4)
    return {"frames": len(frames), **seen}


def test_planes_of_a_tensor_play(browser: Any, tmp_path: Path) -> None:
    values = np.linspace(-1, 1, 12 * 32 * 32, dtype=np.float32)
    source = write_safetensors(tmp_path / "m.safetensors", {"ramp": ("F32", values.shape, values.tobytes())})
    url = archive_model(source, tmp_path, "operators.1.side=32", "operators.1.layout=hilbert",
                        "operators.4.coder=rans").url  # fmt: skip
    export(url, "ramp", str(tmp_path / "p.mp4"))
    seen = played(browser, tmp_path / "p.mp4")
    assert seen["frames"] == 12 and seen["means"] == sorted(seen["means"]) and seen["means"][-1] > 180


def test_a_tensor_through_a_chain_plays(browser: Any, tmp_path: Path) -> None:
    first = archived_model(tmp_path)
    last = archived_child(tmp_path, "b", archived_child(tmp_path, "a", first, 1), 2)
    assert export(last, "layer.0.weight", str(tmp_path / "c.mp4"), chain=True) == 3
    assert played(browser, tmp_path / "c.mp4")["frames"] >= 3

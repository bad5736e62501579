"use strict";
(() => {
  // The videos play in step: the first leads, the others follow, all begin again with the shortest.
  const videos = [...document.querySelectorAll(".videos video")];
  const play = document.getElementById("play");
  const time = document.getElementById("time");
  const fps = Number(document.querySelector(".videos").dataset.fps);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let playing = !still;

  const lengths = () => Math.min(...videos.map((video) => video.duration));
  const all = (act) => videos.forEach((video) => act(video));

  function apply() {
    play.textContent = playing ? "Pause" : "Play";
    all((video) => {
      if (playing) video.play().catch(() => { playing = false; play.textContent = "Play"; });
      else video.pause();
    });
    if (!playing) all((video) => { video.currentTime = videos[0].currentTime; });
  }

  function keep() {
    const length = lengths();
    const lead = videos[0];
    if (length > 0 && playing) {
      if (lead.currentTime >= length - 0.25 / fps && lead.duration > length + 0.5 / fps) {
        all((video) => { video.currentTime = 0; });
      } else {
        for (const video of videos.slice(1)) {
          const apart = Math.abs(video.currentTime - lead.currentTime);
          // One may have begun its next round a moment before the other.
          const away = Math.min(apart, length - apart);
          if (away > 1 / fps && !video.seeking) video.currentTime = lead.currentTime % length;
        }
      }
    }
    if (length > 0) {
      const frames = Math.round(length * fps);
      const frame = Math.min(frames, Math.floor(lead.currentTime * fps + 0.01) + 1);
      time.textContent = `frame ${frame} of ${frames}`;
    }
    requestAnimationFrame(keep);
  }

  play.addEventListener("click", () => { playing = !playing; apply(); });
  document.getElementById("speed").addEventListener("change", (event) => {
    all((video) => { video.playbackRate = Number(event.target.value); });
  });
  apply();
  requestAnimationFrame(keep);

  const slider = document.getElementById("step");
  if (slider) {
    const stops = [...document.querySelectorAll(".path img")];
    const shown = document.getElementById("steps");
    slider.addEventListener("input", () => {
      stops.forEach((image, stop) => { image.hidden = stop !== Number(slider.value); });
      shown.textContent = stops[Number(slider.value)].alt;
    });
  }
})();

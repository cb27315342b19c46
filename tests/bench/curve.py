"""The picture of a density run: memory by kind against the number of bots, and the last bot's deploy time."""

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 64, 44, 70
KINDS = (
    ("platform_mb", "platform", "#4c6a92"),
    ("shim_mb", "shims", "#c98a3d"),
    ("bot_mb", "bots", "#5f9e6e"),
    ("rest_mb", "kernel and files in use", "#b9b9b9"),
)
STYLE = (
    "text{font:12px sans-serif;fill:#333}.title{font-size:14px;font-weight:bold}.grid{stroke:#e4e4e4}"
    ".limit{stroke:#b03030;stroke-dasharray:6 4}.deploy{fill:none;stroke:#7a3b8f;stroke-width:2}"
)


def draw(steps: Sequence[dict[str, float]], memory: int) -> str:
    """An SVG of the steps: bots, used_mb, platform_mb, shim_mb, bot_mb and, but for the first, deploy_s.

    `memory` is what the VPS has, in MB.
    """
    most = max(step["bots"] for step in steps)
    slowest = max(step.get("deploy_s", 0) for step in steps) * 1.25 or 1
    ceiling = memory * 1.1

    def x(bots: float) -> float:
        return LEFT + bots / most * (WIDTH - LEFT - RIGHT)

    def y(share: float) -> float:
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
        return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'

    def text(at_x: float, at_y: float, words: str, anchor: str = "middle", kind: str = "") -> str:
        place = f'x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}"'
        return f'<text class="{kind}" {place}>{escape(words)}</text>'

    parts = [text(WIDTH / 2, 22, f"Bots on a VPS with {memory} MB and one CPU", kind="title")]
    for tick in range(0, memory + 1, 128):
        parts += [
            line(LEFT, y(tick / ceiling), WIDTH - RIGHT, y(tick / ceiling), "grid"),
            text(LEFT - 8, y(tick / ceiling) + 4, str(tick), "end"),
        ]
    lower = [0.0] * len(steps)
    for key, _, colour in KINDS:
        upper = []
        for step, below in zip(steps, lower, strict=True):
            named = sum(step[kind] for kind, _, _ in KINDS[:-1])
            # Pages of programs are counted with the programs, so the sum may exceed what counts as used.
            size = max(step["used_mb"] - named, 0.0) if key == "rest_mb" else step[key]
            upper.append(below + size)
        outline = [(step["bots"], top) for step, top in zip(steps, upper, strict=True)]
        outline += [(step["bots"], bottom) for step, bottom in reversed(list(zip(steps, lower, strict=True)))]
        points = " ".join(f"{x(bots):.1f},{y(size / ceiling):.1f}" for bots, size in outline)
        parts.append(f'<polygon points="{points}" fill="{colour}" fill-opacity="0.85"/>')
        lower = upper
    parts.append(line(LEFT, y(memory / ceiling), WIDTH - RIGHT, y(memory / ceiling), "limit"))
    timed = [step for step in steps if "deploy_s" in step]
    points = " ".join(f"{x(step['bots']):.1f},{y(step['deploy_s'] / slowest):.1f}" for step in timed)
    parts.append(f'<polyline class="deploy" points="{points}"/>')
    for step in timed:
        parts.append(text(x(step["bots"]), y(step["deploy_s"] / slowest) - 8, f"{step['deploy_s']:.1f} s"))
    parts += [text(x(step["bots"]), HEIGHT - BOTTOM + 18, f"{step['bots']:.0f}") for step in steps]
    parts += [
        text(WIDTH / 2, HEIGHT - BOTTOM + 36, "bots, all healthy and each answering within a second"),
        text(LEFT - 8, TOP - 10, "MB", "end"),
    ]
    at = LEFT
    for _, words, colour in KINDS:
        parts += [
            f'<rect x="{at}" y="{HEIGHT - 20}" width="12" height="12" fill="{colour}"/>',
            text(at + 17, HEIGHT - 10, words, "start"),
        ]
        at += 40 + 7 * len(words)
    parts += [
        line(at, HEIGHT - 14, at + 16, HEIGHT - 14, "deploy"),
        text(at + 22, HEIGHT - 10, "deploy of the last bot", "start"),
    ]
    extent = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {extent}>\n<style>{STYLE}</style>\n{background}\n'
    return head + "\n".join(parts) + "\n</svg>\n"

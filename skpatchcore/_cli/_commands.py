"""The group of commands, and the command ``demo``.

Importing it imports only click. Each command imports the rest, above all torch, when it
runs, so that ``--help`` and mistyped options are answered at once.
"""

from pathlib import Path

import click

from skpatchcore import __version__
from skpatchcore._cli._benchmark_command import benchmark
from skpatchcore._cli._files import check_targets
from skpatchcore._cli._fit_command import fit
from skpatchcore._cli._messages import Command, print_text, progress_level
from skpatchcore._cli._options import (
    NEW_FOLDER,
    common_options,
    option,
    random_state_option,
)
from skpatchcore._cli._score_command import score


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="skpatchcore")
def main() -> None:
    """Find defects in images after training on images of good parts (PatchCore)."""


@main.command(cls=Command)
@option(
    "--output",
    type=NEW_FOLDER,
    default="skpatchcore_demo",
    help="Folder to write demo_sheet.png to.",
)
@random_state_option
@common_options
def demo(output: Path, random_state: int) -> None:
    """Try the method on generated images.

    Needs no data and no download. Prints how well defects are found, and draws a sheet
    of images with their anomaly maps and masks.
    """
    from skpatchcore._benchmark import format_table
    from skpatchcore._cli._demo import COLUMNS, draw_sheet, run_demo
    from skpatchcore.inspection import check_matplotlib

    check_targets([("--output", output / "demo_sheet.png")])
    output.mkdir(parents=True, exist_ok=True)
    click.echo("Fitting on generated images of good surfaces ...", err=True)
    found = run_demo(random_state, verbose=progress_level())
    click.echo(format_table([found.metrics], COLUMNS))
    try:
        check_matplotlib()
    except ImportError as error:
        click.echo(f"No sheet of images was drawn. {error}", err=True)
    else:
        draw_sheet(found, output / "demo_sheet.png")
        print_text(f"\nImages, anomaly maps and masks: {output / 'demo_sheet.png'}")
    click.echo(
        "Next, your own images:  skpatchcore fit FOLDER_OF_GOOD --model part.skpc "
        "--alpha 0.05\n"
        "                          skpatchcore score --model part.skpc NEW_IMAGES"
    )


for command in (benchmark, fit, score):
    main.add_command(command)

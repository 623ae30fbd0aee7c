"""The command ``steepest``: lists, shows, runs and reports studies. Every call imports what it needs itself."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from steepest.core.records import RunRecord, Store

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

OK, SHORT, USAGE, RAISED, INTERRUPTED = 0, 1, 2, 3, 130
Out = Annotated[Path, typer.Option("--out", help="The store of results.", show_default=True)]
STORE = Path("steepest-results")


def _console(stderr: bool = False) -> Any:
    """Make the console; output that is no terminal gets wide lines, for people who search in it."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    return (
        console
        if console.is_terminal or "COLUMNS" in os.environ
        else Console(stderr=stderr, highlight=False, width=160)
    )


def _fail(message: str, code: int = USAGE) -> NoReturn:
    _console(stderr=True).print(f"[bold red]error[/] {_escaped(message)}")
    raise typer.Exit(code)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _open_store(path: Path) -> Store:
    from steepest.core.records import Store

    return Store(path)


def _key(word: str) -> str:
    from steepest.studies import registry

    try:
        return registry.search(word).key
    except ValueError as error:
        _fail(str(error))


def _verdicts(record: RunRecord) -> str:
    """Say in a few words what became of a run's claims."""
    from steepest.studies.claim import Verdict

    if record.status != "ok":
        return f"[magenta]{record.status}[/]"
    count = {v: sum(c.verdict == v.value for c in record.claims) for v in Verdict}
    judged = sum(count[v] for v in (Verdict.HOLDS, Verdict.SHORT, Verdict.UNDECIDED))
    text = f"[cyan]{count[Verdict.HOLDS]}[/] of {judged} hold"
    if count[Verdict.SHORT]:
        text += f", [orange3]{count[Verdict.SHORT]} fall short[/]"
    if count[Verdict.UNDECIDED]:
        text += f", {count[Verdict.UNDECIDED]} undecided"
    if count[Verdict.UNMEASURED]:
        text += f", [dim]{count[Verdict.UNMEASURED]} not measured[/]"
    return text


@app.command("list")
def list_methods(
    area: Annotated[str | None, typer.Option("--area", help="Only this room.")] = None, out: Out = STORE
) -> None:
    """List the 31 methods: area, paper, verdicts of the latest run."""
    from rich.table import Table

    from steepest.studies import bibliography, registry

    store = _open_store(out)
    latest = {record.key: record for record in store.runs()}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("method", "area", "paper", "latest run"):
        table.add_column(column, no_wrap=column == "method")
    for method in _in_area(area):
        entry = bibliography.entry(method.bib)
        if method.key in latest:
            run = f"{_verdicts(latest[method.key])} [dim]({latest[method.key].scale})[/]"
        else:
            run = "[dim]not run yet[/]" if registry.has_study(method.key) else "[dim]no study in this version[/]"
        table.add_row(method.key, method.area, f"{entry.short}, {entry.venue} {entry.year}", run)
    _console().print(table)


def _in_area(area: str | None) -> list[Any]:
    from steepest.studies import registry

    methods = list(registry.METHODS.values())
    if area is None:
        return methods
    areas = sorted({m.area for m in methods})
    if area not in areas:
        _fail(f"--area must be one of {', '.join(areas)}, got {area!r}")
    return [m for m in methods if m.area == area]


@app.command()
def show(key: Annotated[str, typer.Argument(help="A method's key, class name or a word of its paper.")]) -> None:
    """Show what a method is for, its claims, a runnable snippet, its peers and where its files are."""
    import inspect

    from rich.markdown import Markdown
    from rich.syntax import Syntax
    from rich.table import Table

    from steepest.core.extras import installed
    from steepest.studies import bibliography, registry

    method = registry.METHODS[_key(key)]
    entry, console = bibliography.entry(method.bib), _console()
    console.print(f"[bold]{method.key}[/]  {method.name}\n{method.sentence}")
    console.print(
        f"[dim]{_escaped(entry.authors)}. {_escaped(entry.title)}. {entry.venue} {entry.year}. {entry.url}[/]\n"
    )
    if not registry.has_study(method.key):
        console.print("This version has no study of it yet.")
        return
    study = registry.load_study(method.key)
    console.print(Markdown(inspect.getdoc(study) or ""))
    table = Table(
        title="Claims", title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold"
    )
    for column in ("claim", "paper", "bound", "scales"):
        table.add_column(column, overflow="fold")
    for claim in study.CLAIMS:
        bound = f"{claim.bound} {claim.unit}" + (" (invariant)" if claim.invariant else "")
        table.add_row(_escaped(claim.says), _escaped(claim.paper), bound, claim.scales)
    console.print("", table)
    console.print("\n[bold]Use[/]")
    console.print(Syntax(study.SNIPPET.strip(), "python", theme="ansi_dark", background_color="default"))
    console.print("\n[bold]Peers[/]")
    for peer in study.PEERS:
        console.print(f"  {peer.name} [dim]({peer.package}{'' if installed(peer.package) else ', not installed'})[/]")
    if study.OPTIONS:
        console.print("\n[bold]Options of the study[/]")
        for name, text in study.OPTIONS.items():
            console.print(f"  --option {name}=…  {_escaped(text)}")
    console.print("\n[bold]Files[/]")
    _print_places(console, method.key)


def _print_places(console: Any, key: str) -> None:
    from steepest import house

    for place in house.places(key):
        console.print(f"  {place.what:10}{_escaped(_short(place))}", soft_wrap=True)


def _short(place: Any) -> str:
    """Name a place as seen from the folder where the command runs, if it lies in it."""
    here = f"{Path.cwd()}{os.sep}"
    return str(place).removeprefix(here)


@app.command()
def where(
    word: Annotated[str, typer.Argument(help="A method's key, a class, a function, a word of its paper.")],
) -> None:
    """Say where a method or a public name lives: source, tests, study, page, example and benchmark."""
    from steepest import house
    from steepest.studies import registry

    console = _console()
    found = house.public_name(word)
    try:
        keys = [registry.search(word).key]
    except ValueError as error:
        if found is None:
            _fail(str(error).replace("key must be the key of a method", "WORD must be a method or a public name"))
        keys = found[1]
    if found is not None:
        console.print(f"[bold]{found[0].what}[/]\n  defined   {_escaped(_short(found[0]))}", soft_wrap=True)
        if len(keys) > 3:
            console.print(f"  used by   {', '.join(keys)}", soft_wrap=True)
            return
    for key in keys:
        console.print(f"[bold]{key}[/]  {registry.METHODS[key].name}: {registry.METHODS[key].sentence}", soft_wrap=True)
        _print_places(console, key)


@app.command("new")
def new_method(
    key: Annotated[str, typer.Argument(help="Words of small letters and digits, joined by hyphens.")],
    area: Annotated[str | None, typer.Option("--area", help="The room; known for a registered method.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="The method's name in texts.")] = None,
) -> None:
    """Write the skeleton of a method, its study, tests, benchmark and page into this checkout."""
    from steepest import house
    from steepest.studies import registry

    known = registry.METHODS.get(key.replace("_", "-"))
    name = name or (known.name if known else key.replace("-", " ").capitalize())
    area = area or (known.area if known else None)
    if area is None:
        _fail("--area must say the room of a method that the registry does not know")
    console = _console()
    try:
        for path in house.new_method(key, area, name, Path.cwd()):
            console.print(f"wrote {_escaped(str(path.relative_to(Path.cwd())))}", soft_wrap=True)
    except (ValueError, FileExistsError) as error:
        _fail(str(error))
    console.print("\nBy hand, in this order (CONTRIBUTING.md says how):")
    row = "" if known else f'Method("{key}", "{area}", "{name}", "One plain sentence.", "surnameYEARword"),'
    for file, line in (
        ("src/steepest/studies/registry.py", row),
        ("src/steepest/references.bib", "" if known else "the paper's entry, every field on a line of its own"),
        (f"src/steepest/{area}/__init__.py", "the public name"),
        ("docs/index.rst", f"methods/{key}"),
        ("docs/api.rst", "the public name"),
        ("README.md", "a row of the table of methods"),
        ("CHANGELOG.md", "a line under Unreleased"),
    ):
        if line:
            console.print(f"  {file}: [dim]{_escaped(line)}[/]", soft_wrap=True)
    console.print(f"\nThen: steepest run {key} --scale tiny")


@app.command()
def run(
    keys: Annotated[list[str] | None, typer.Argument(metavar="[KEY]...", help="Methods; all by default.")] = None,
    area: Annotated[str | None, typer.Option("--area", help="Only the methods of this room.")] = None,
    scale: Annotated[
        str, typer.Option("--scale", help="quick, full or paper (tiny: for tests, no verdicts).")
    ] = "quick",
    seed: Annotated[int, typer.Option("--seed", help="Base of all seeds.")] = 0,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Seeds to report on.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", help="Studies at a time, sharing the cores (1; on Ray: one a machine)."),
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="local, or ray: studies as tasks of a cluster.")] = "local",
    address: Annotated[
        str | None, typer.Option("--address", help="Of a running Ray cluster; a local one is started without.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Path or name of a data set.")] = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", help="Limit on training steps (paper scale).")] = None,
    option: Annotated[list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="Of the study.")] = None,
    track: Annotated[
        str | None, typer.Option("--track", help="mlflow or tensorboard: tell it what is measured, too.")
    ] = None,
    out: Out = STORE,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what is finished.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per study and nothing else.")] = False,
) -> None:
    """Run studies and print each claim with the paper's number, the measured number, the bound and the verdict.

    Exit status: 0 all measured claims hold, 1 some fall short or are undecided, 2 usage or nothing could run,
    3 a study raised, 130 interrupted.
    """
    from steepest.display import make_display, print_record
    from steepest.studies import registry
    from steepest.studies.context import Job
    from steepest.studies.runner import finished, first_rank, run_many

    chosen = [_key(k) for k in keys or [m.key for m in _in_area(area) if registry.has_study(m.key)]]
    if area is not None:
        chosen = [k for k in chosen if registry.METHODS[k].area == area]
    chosen = list(dict.fromkeys(chosen))
    without = [k for k in chosen if not registry.has_study(k)]
    if without or not chosen:
        _fail(f"this version has no study of {', '.join(without) or area}; see `steepest list`")
    options = {}
    for item in option or []:
        name, equals, value = item.partition("=")
        if not equals or not name:
            _fail(f"--option must be NAME=VALUE, got {item!r}")
        options[name] = value
    for k in chosen if options else ():
        known = registry.load_study(k).OPTIONS
        if strange := sorted(set(options) - set(known)):
            _fail(f"the study {k} has no option {strange[0]!r}; it has {', '.join(known) or 'none'}")
    try:
        todo = [Job(k, scale, seed, seeds, options, data, max_steps) for k in chosen]
    except (ValueError, TypeError) as error:
        _fail(f"--{error}")
    if jobs is not None and jobs < 1:
        _fail(f"--jobs must be >= 1, got {jobs}")
    if engine not in ("local", "ray"):
        _fail(f"--engine must be local or ray, got {engine!r}")
    if address is not None and engine != "ray":
        _fail("--address needs --engine ray")
    if track not in (None, "mlflow", "tensorboard"):
        _fail(f"--track must be mlflow or tensorboard, got {track!r}")

    store, console = _open_store(out), _console(stderr=as_json)
    console.quiet = not first_rank()
    done = {} if fresh else finished(store, todo)
    records: dict[str, RunRecord] = dict(done)
    with make_display(console, todo, done) as display:
        try:
            left = [j for j in todo if j.key not in done]
            with _listeners(store, todo, done, jobs or 1, track, display.event) as tell:
                if engine == "ray":
                    made = _on_ray(left, store, jobs, address, tell)
                else:
                    made = run_many(left, store, n_jobs=jobs or 1, on_event=tell)
            records.update((record.key, record) for record in made)
        except KeyboardInterrupt:
            display.close()
            kept = sum(k not in done for k in display.finished)
            console.print(f"interrupted: {kept} finished studies are kept in {out}")
            raise typer.Exit(INTERRUPTED) from None
    for k in chosen:
        if as_json:
            sys.stdout.write(records[k].model_dump_json() + "\n" if first_rank() else "")
        else:
            print_record(console, records[k], again=k in done)
    if first_rank():
        _draw(store, [r for k, r in records.items() if r.status == "ok" and k not in done], console)
    raise typer.Exit(_exit_code(list(records.values())))


@contextlib.contextmanager
def _listeners(
    store: Store, jobs: list[Any], done: dict[str, RunRecord], at_once: int, track: str | None, show: Any
) -> Iterator[Any]:
    """Yield what hears a run's events: the display and, where something is run, the live state and a tracker."""
    from steepest.core.extras import MissingExtra
    from steepest.studies.live import Beacon
    from steepest.studies.runner import first_rank
    from steepest.studies.tracking import Tracking

    hear = [show]
    with contextlib.ExitStack() as stack:
        if len(done) < len(jobs) and first_rank():
            try:
                if track is not None:
                    hear.append(stack.enter_context(Tracking(track, store)).event)
            except MissingExtra as error:
                _fail(str(error))
            hear.append(stack.enter_context(Beacon(store, jobs, done, at_once=at_once)).event)

        def tell(job: Any, event: Any) -> None:
            for listener in hear:
                listener(job, event)

        yield tell


def _on_ray(jobs: list[Any], store: Store, at_once: int | None, address: str | None, tell: Any) -> list[RunRecord]:
    """Run on a cluster; one that is not there, or Ray itself missing, is a usage error."""
    from steepest.core.extras import MissingExtra
    from steepest.studies.cluster import run_on_ray

    if not jobs:
        return []
    try:
        return run_on_ray(jobs, store, n_jobs=at_once, address=address, on_event=tell)
    except MissingExtra as error:
        _fail(str(error))
    except ConnectionError as error:
        _fail(f"no Ray cluster at --address {address}: {str(error).splitlines()[0]}")


def _draw(store: Store, records: list[RunRecord], console: Any) -> None:
    """Draw the figures of fresh runs; without the report's packages say what adds them."""
    if not records:
        return
    from steepest.core.extras import MissingExtra
    from steepest.report import figures

    try:
        folders = {path.parent for record in records for path in figures.draw_run(store, record)}
    except MissingExtra as error:
        console.print(f"no figures: {_escaped(str(error))}")
        return
    for folder in sorted(folders):
        console.print(f"figures: {folder}/", soft_wrap=True)


def _exit_code(records: list[RunRecord]) -> int:
    verdicts = {c.verdict for r in records for c in r.claims if r.status == "ok"}
    if any(r.status == "error" for r in records):
        return RAISED
    if all(r.status == "skipped" for r in records):
        return USAGE
    return SHORT if verdicts & {"falls short", "undecided"} else OK


@app.command()
def report(
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False, out: Out = STORE
) -> None:
    """Write the site from what is in the store."""
    from steepest.report.site import write_site

    index = write_site(_open_store(out)) / "index.html"
    _console().print(f"report: {index}", soft_wrap=True)
    if open_:
        typer.launch(str(index.resolve()))


@app.command()
def serve(
    port: Annotated[int, typer.Option("--port", help="On 127.0.0.1; 0 takes a free one.")] = 8765,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    out: Out = STORE,
) -> None:
    """Serve the site on this machine, live while studies run in other terminals."""
    from steepest.report.serve import make_server

    if not 0 <= port < 65536:
        _fail(f"--port must be between 0 and 65535, got {port}")
    try:
        server = make_server(_open_store(out), port)
    except OSError as error:
        _fail(f"port {port} of 127.0.0.1 is not to be had ({error.strerror}); choose another with --port")
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    console = _console()
    console.print(f"results of {out} at {address}, runs as they go at {address}live.html (Ctrl+C ends)", soft_wrap=True)
    if open_:
        typer.launch(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        console.print("")
    finally:
        server.server_close()


@app.command()
def bench(
    keys: Annotated[list[str] | None, typer.Argument(metavar="[KEY]...", help="Benchmarks; all by default.")] = None,
    out: Out = STORE,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the ratios to compare with, and the rows for the scoreboard.")
    ] = False,
) -> None:
    """Time methods side by side with their peers: median ratio with an interval, and the bound it should meet.

    Exit status 1 when a ratio is over 20 % worse than the kept baseline of this processor.
    """
    from steepest import bench as benchmarks

    folder = Path("benchmarks")
    names = benchmarks.available(folder)
    if not names:
        _fail("there is no folder benchmarks/ here: run this in a checkout of the source")
    chosen = [k.replace("-", "_") for k in keys] if keys else names
    unknown = [k for k in chosen if k not in names]
    if unknown:
        _fail(f"no benchmark {unknown[0]!r}; there are {', '.join(names)}")
    console, slower = _console(), []
    for name in chosen:
        console.print(f"[bold]{name}[/]")
        with console.status("0%") as status:

            def tell(share: float, status: Any = status) -> None:
                status.update(f"{share:.0%}")

            rows = benchmarks.run(folder, name, tell)
        slower += benchmarks.compare(folder, name, rows)
        stored = benchmarks.store(out / "bench", name, rows)
        console.print(benchmarks.table(rows))
        if keep:
            benchmarks.keep(folder, name, rows, stored)
    for text in slower:
        console.print(f"[orange3]slower[/] {_escaped(text)}")
    raise typer.Exit(SHORT if slower else OK)


@app.command()
def scoreboard(
    file: Annotated[Path, typer.Argument(help="The page to write; its chart is written beside it.")] = Path(
        "docs/scoreboard.md"
    ),
    out: Annotated[
        Path | None, typer.Option("--out", help="Read the benchmarks of this store, too, not only the kept ones.")
    ] = None,
) -> None:
    """Write the scoreboard of all kept benchmarks: one table, one chart, and every row."""
    from steepest import scoreboard as board
    from steepest.core.records import write_atomically

    folders = [Path("benchmarks") / "results", *([out / "bench"] if out is not None else [])]
    results = board.read_results(*folders)
    if not results:
        _fail(f"there are no results in {' or '.join(map(str, folders))}: `steepest bench --keep` makes them")
    picture = file.with_suffix(".svg")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(picture, board.chart(results))
    write_atomically(file, board.page(results, picture.name))
    _console().print(f"{len(results)} benchmarks in {file}", soft_wrap=True)


@app.command()
def verdicts(
    folder: Annotated[Path, typer.Argument(help="The pages, one KEY.md for each method.")] = Path("docs/methods"),
    out: Annotated[Path, typer.Option("--out", help="The store with the runs.")] = Path("steepest-results"),
) -> None:
    """Write what was measured of each claim into the methods' pages, from the widest and newest runs of a store."""
    from steepest import verdicts as pages
    from steepest.core.records import Store, write_atomically
    from steepest.studies import registry

    every, written = list(Store(out).runs()), 0
    for key in registry.METHODS:
        page, runs = folder / f"{key}.md", pages.newest(every, key)
        if page.is_file() and runs:
            found = pages.table(registry.load_study(key).CLAIMS, runs)
            write_atomically(page, pages.splice(page.read_text("utf-8"), found))
            written += 1
    if not written:
        _fail(f"no page of {folder} has a run in {out}: `steepest run --out {out}` makes them")
    _console().print(f"{written} pages in {folder}", soft_wrap=True)


@app.command()
def cite(key: Annotated[str, typer.Argument(help="A method's key.")]) -> None:
    """Print the paper's BibTeX entry."""
    from steepest.studies import bibliography, registry

    sys.stdout.write(bibliography.entry(registry.METHODS[_key(key)].bib).text + "\n")


@app.command()
def doctor() -> None:
    """Print versions, extras present and missing with the command that adds them, accelerator and threads."""
    from steepest.display import print_doctor

    print_doctor(_console())


def _show_warning(message: Warning | str, *rest: object) -> None:
    sys.stderr.write(f"warning: {message}\n")


def main() -> None:
    """Entry point of the command."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()

"""`channelwise inspect`: where a model has outlier channels."""

from dataclasses import asdict

from channelwise.cli.options import AsJson, CalibrationLength, Data, Debug, Device, Model, Samples, Seed


def inspect(
    model: Model,
    data: Data,
    samples: Samples = None,
    length: CalibrationLength = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show where a model has outlier channels.

    For each set of layers that read one input: its largest channels, what could be folded where, and two lines about
    what is hard in this model and which recipes to try.
    """
    from channelwise.cli.output import print_json, quiet_libraries, results_console
    from channelwise.cli.progress import reported_progress

    quiet_libraries()
    from channelwise import api
    from channelwise.report.inspection import advice, sites_table

    with reported_progress() as progress:
        sites = api.inspect(
            model, data=data, samples=samples, length=length, seed=seed, device=device, progress=progress
        )
    if as_json:
        print_json({"model": model, "sites": [asdict(site) for site in sites]})
        return
    console = results_console()
    console.print(sites_table(sites, console.width), "")
    console.print(advice(sites))

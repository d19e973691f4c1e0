"""guidedflow prepare: write a data set to where training reads it. The only command that downloads."""

from guidedflow.commands import Parser


def main(arguments: list[str]) -> int:
    """Prepare one data set, and print its folder."""
    parser = Parser(prog="guidedflow prepare", description=__doc__, allow_abbrev=False)
    parser.add_argument("name", help="digits, emoji, or a tensorflow-datasets name such as cifar10")
    parser.add_argument("--data_dir", help="folder for prepared sets; the user's cache otherwise")
    given = parser.parse_args(arguments)
    from guidedflow import data  # not needed for --help, and slow to import

    print(f"{given.name} lies in {data.prepare(given.name, given.data_dir)}")
    return 0

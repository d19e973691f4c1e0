"""What pyproject.toml has no words for: a wheel holds the folder configs/ as guidedflow/configs."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies the configs into the package, where `guidedflow.config_files` looks for them."""

    def run(self):
        super().run()
        # An editable install reads them where they are.
        if not self.editable_mode:
            target = Path(self.build_lib) / "guidedflow" / "configs"
            self.mkpath(str(target))
            for file in sorted(Path(__file__).parent.glob("configs/*.py")):
                self.copy_file(str(file), str(target / file.name))


setup(cmdclass={"build_py": BuildWithConfigs})

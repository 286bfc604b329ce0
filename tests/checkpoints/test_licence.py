"""Which licence a checkpoint's own files name; never a guess."""

import json
from pathlib import Path

import pytest

from mergeline.checkpoints.licence import licence_in, licence_of


@pytest.mark.parametrize(
    ("texts", "licence"),
    [
        ({}, "unknown"),
        ({"README.md": "# A model\n\nlicense: mit"}, "unknown"),
        ({"README.md": "---\nlicense: apache-2.0\ntags: [a]\n---\n# A model"}, "apache-2.0"),
        ({"README.md": "---\r\nlicense:\r\n- mit\r\n---\r\n"}, "mit"),
        ({"README.md": "---\nlicense: other\nlicense_name: llama3\n---\n"}, "other (llama3)"),
        ({"README.md": "---\nlicense: [\n---\n", "LICENSE": "MIT License\n\nCopyright"}, "mit"),
        ({"README.md": "---\nlicense: mit\n---\n", "LICENSE": "Apache License\nVersion 2.0"}, "mit"),
        ({"config.json": json.dumps({"license": "gpl-3.0"})}, "gpl-3.0"),
        ({"config.json": "["}, "unknown"),
        ({"LICENSE": "\n     Apache License\n   Version 2.0, January 2004\n"}, "apache-2.0"),
        ({"LICENSE.txt": "GNU GENERAL PUBLIC LICENSE\n  Version 3, 29 June 2007"}, "gpl-3.0"),
        ({"LICENSE": "LLAMA 3 COMMUNITY LICENSE AGREEMENT\n..."}, "other (LLAMA 3 COMMUNITY LICENSE AGREEMENT)"),
        ({"README.md": "---\nlicense: 'm|t`\\n# x'\n---"}, "mtn x"),
    ],
)
def test_the_licence_that_files_name(texts: dict[str, str], licence: str) -> None:
    assert licence_in(texts) == licence


def test_a_folder_is_asked_for_all_of_them_and_a_file_for_those_that_tell_of_models(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("MIT License")
    (tmp_path / "model.safetensors").touch()
    assert licence_of(str(tmp_path)) == licence_of(f"file://{tmp_path}") == "mit"
    assert licence_of(str(tmp_path / "model.safetensors")) == "unknown", "it may be that of the code around it"
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert licence_of(str(tmp_path / "model.safetensors")) == "apache-2.0"
    assert licence_of("https://127.0.0.1:9/model.safetensors") == "unknown"

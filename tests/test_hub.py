"""hubconf.py: torch.hub.load from programs that have modules of the same names."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hubconf
from data.dataset import EMOTIONS
from inference.predictor import FacePredictor
from models.checkpoint import load_checkpoint
from models.fernet import FERNet
from models.predict import predict
from utils.errors import WeightsError
from utils.run_folder import FER2013_WEIGHTS, FERPLUS_WEIGHTS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def program(tmp_path, astronaut):
    """Return a function that runs code in a folder with packages named data, utils and models."""
    for name in ("data", "utils"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"OWNER = 'caller {name}'\n")
        (tmp_path / name / "files.py").write_text("OWNER = 'caller files'\n")
    (tmp_path / "models.py").write_text("OWNER = 'caller models'\n")
    Image.fromarray(astronaut).save(tmp_path / "astronaut.png")
    header = f"import sys, torch, numpy as np\nfrom PIL import Image\nPATH = {str(ROOT)!r}\n"

    def run(code):
        command = [sys.executable, "-c", header + code]
        result = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=300
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def test_a_program_with_its_own_data_utils_and_models(program, astronaut):
    output = program(
        "import data, utils.files\n"  # imported before
        "before, path = dict(sys.modules), sys.path.copy()\n"
        "predictor = torch.hub.load(PATH, 'face_predictor', source='local', gpu_ids='-1')\n"
        "network = torch.hub.load(PATH, 'resnet18_fer', source='local')\n"
        "assert sys.path == path\n"
        "assert sys.modules['data'] is before['data'] and sys.modules['utils'] is before['utils']\n"
        "assert sys.modules['utils.files'] is before['utils.files']\n"
        "assert not {'inference', 'engine', 'models', 'utils.errors'} & set(sys.modules)\n"
        "import models, data.files\n"  # imported after
        "assert data.OWNER == 'caller data' and utils.OWNER == 'caller utils'\n"
        "assert models.OWNER == 'caller models'\n"
        "assert data.files.OWNER == utils.files.OWNER == 'caller files'\n"
        "image = np.array(Image.open('astronaut.png'))\n"
        "(face,) = predictor(image)\n"
        "print(face.expression, *face.box, face.confidence)\n"
        "output = network(torch.zeros(2, 1, 48, 48, dtype=torch.uint8))\n"
        "print(*output.weighted_logits.shape, *output.landmarks.shape, network.training)\n"
    )
    *_, first, second = output.splitlines()  # a note about a busy CPU may precede
    (face,) = FacePredictor(FERPLUS_WEIGHTS, gpu_ids="-1")(astronaut)
    expression, *numbers = first.split()
    assert expression == face.expression
    np.testing.assert_allclose(np.float32(numbers), [*face.box, face.confidence], rtol=1e-5)
    assert second == "2 7 2 68 2 False"


def test_a_program_that_imports_its_own_packages_later(program):
    program(
        "torch.hub.load(PATH, 'resnet18_fer', source='local', pretrained=False)\n"
        "import data.files, models, utils\n"
        "assert data.OWNER == 'caller data' and data.files.OWNER == 'caller files'\n"
        "assert models.OWNER == 'caller models' and utils.OWNER == 'caller utils'\n"
        "torch.hub.load(PATH, 'face_predictor', source='local', weights='resnet18_ferplus')\n"
        "assert sys.modules['models'] is models\n"
    )


def test_an_error_restores_the_modules_too(program):
    program(
        "import data\n"
        "path = sys.path.copy()\n"
        "for name in ('resnet18_fer', 'face_predictor'):\n"
        "    try:\n"
        "        torch.hub.load(PATH, name, source='local', weights='none.pth')\n"
        "    except Exception as error:\n"
        "        assert 'none.pth: no such weight file' in str(error)\n"
        "    else:\n"
        "        raise AssertionError\n"
        "assert sys.modules['data'] is data and data.OWNER == 'caller data'\n"
        "assert sys.path == path and 'models' not in sys.modules\n"
    )


def test_the_network_has_the_released_weights_in_evaluation_mode():
    network = torch.hub.load(str(ROOT), "resnet18_fer", source="local")
    assert isinstance(network, FERNet)  # the caller has imported this repository itself
    assert not network.training
    assert network.class_names == EMOTIONS
    released = load_checkpoint(FER2013_WEIGHTS).network()
    pixels = torch.randint(0, 256, (4, 1, 48, 48), dtype=torch.uint8)
    one, other = predict(network, pixels), predict(released, pixels)
    np.testing.assert_array_equal(one.probabilities, other.probabilities)
    by_path = torch.hub.load(str(ROOT), "resnet18_fer", source="local", weights=FER2013_WEIGHTS)
    np.testing.assert_array_equal(predict(by_path, pixels).probabilities, other.probabilities)


def test_a_network_without_weights():
    network = torch.hub.load(str(ROOT), "resnet18_fer", source="local", pretrained=False)
    assert not network.training
    assert network.architecture.width == 1
    assert len(network.class_names) == network.architecture.classes


def test_missing_weights_are_named():
    with pytest.raises(WeightsError, match=r"none\.pth"):
        torch.hub.load(str(ROOT), "face_predictor", source="local", weights="none.pth")


def test_the_entry_points_are_listed_and_documented():
    names = [name for name in dir(hubconf) if callable(getattr(hubconf, name))]  # as torch.hub.list
    names = [name for name in names if not name.startswith("_")]
    assert names == ["face_predictor", "resnet18_fer"]
    for name in names:
        assert "Args:" in getattr(hubconf, name).__doc__
    assert all(hubconf._weight_path(name).is_file() for name in hubconf.RELEASED)

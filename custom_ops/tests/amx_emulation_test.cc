// The emulation of AMX multiplies as the architecture manual says, and refuses what it forbids.

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>

#include "check.h"
#include "cpu/kernels/amx_tiles-inl.h"

namespace fp4dit::test {
namespace {

// Whether `use` of the tiles is refused: it runs in a child process, whose end says so.
template <typename Use>
bool Refuses(const Use& use) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    close(STDOUT_FILENO);
    signal(SIGABRT, SIG_DFL);
    use();
    _exit(0);
  }
  int status = 0;
  CHECK(child > 0 && waitpid(child, &status, 0) == child, "no child process");
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

// Shapes of the tiles of sums, activations and weights, by hand.
TileConfig Shapes(uint8_t rows, uint16_t inner, uint16_t columns) {
  TileConfig config = {};
  config.palette = 1;
  config.rows[0] = config.rows[kActTile] = rows;
  config.row_bytes[0] = config.row_bytes[kWeightTile] = static_cast<uint16_t>(4 * columns);
  config.row_bytes[kActTile] = static_cast<uint16_t>(4 * inner);
  config.rows[kWeightTile] = static_cast<uint8_t>(inner);
  return config;
}

void Multiply() { Tiles::MultiplySigned<0, kActTile, kWeightTile>(); }

void TestRefusals() {
  const TileConfig right = Shapes(3, 5, 7);
  CHECK(!Refuses([&] { Tiles::Configure(right), Multiply(), Tiles::Release(); }), "right shapes");
  CHECK(Refuses(Multiply), "tiles that were never configured");
  CHECK(Refuses([&] { Tiles::Configure(right), Tiles::Release(), Multiply(); }), "released tiles");
  CHECK(Refuses([&] { Tiles::Configure(right), Tiles::Configure(right); }), "no release");
  CHECK(Refuses([&] { Tiles::Configure(right), Tiles::Zero<1>(); }), "a tile without rows");
  const auto refuses = [](const TileConfig& config) {
    return Refuses([&] { Tiles::Configure(config), Multiply(); });
  };
  TileConfig wrong = right;
  wrong.rows[0] = 4;
  CHECK(refuses(wrong), "rows of sums and activations");
  wrong = right;
  wrong.row_bytes[0] = 24;
  CHECK(refuses(wrong), "columns of sums and weights");
  wrong = right;
  wrong.rows[kWeightTile] = 4;
  CHECK(refuses(wrong), "inner sizes");
  wrong = right;
  wrong.rows[1] = 1;
  CHECK(refuses(wrong), "rows without columns");
  wrong = right;
  wrong.rows[0] = wrong.rows[kActTile] = 17;
  CHECK(refuses(wrong), "17 rows");
  wrong = right;
  wrong.palette = 2;
  CHECK(refuses(wrong), "a palette that does not exist");
}

// One product of 2 x 2 bytes of either sign, and what lies outside the shapes.
void TestProducts() {
  const int8_t act[2][4] = {{-128, 127, -1, 2}, {1, 0, 0, 0}};
  const int8_t weight[1][8] = {{-128, 1, 2, 3, 127, -127, 5, 0}};
  int32_t sums[2][3] = {{1, 2, 77}, {3, 4, 77}};
  Tiles::Configure(Shapes(2, 1, 2));
  Tiles::Load<0>(sums, sizeof(sums[0]));
  Tiles::Load<kActTile>(act, sizeof(act[0]));
  Tiles::Load<kWeightTile>(weight, sizeof(weight[0]));
  Multiply();
  Tiles::MultiplyUnsigned<0, kActTile, kWeightTile>();
  Tiles::Store<0>(sums, sizeof(sums[0]));
  Tiles::Release();
  // Signed: 16384 + 127 - 2 + 6, and -16256 - 16129 - 5. Unsigned, -128 is 128 and -1 is 255.
  CHECK(sums[0][0] == 1 + 16515 + (-16384 + 127 + 510 + 6), "%d", sums[0][0]);
  CHECK(sums[0][1] == 2 - 32390 + (16256 - 16129 + 1275), "%d", sums[0][1]);
  CHECK(sums[1][0] == 3 - 128 - 128 && sums[1][1] == 4 + 127 + 127, "%d", sums[1][0]);
  CHECK(sums[0][2] == 77 && sums[1][2] == 77, "%d", sums[0][2]);
}

}  // namespace

void TestAmxEmulation() {
  TestRefusals();
  TestProducts();
}

}  // namespace fp4dit::test

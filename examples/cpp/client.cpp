// Run an exported generator in C++ with ONNX Runtime: label map in, photo out, as `spade infer` makes it.
//
//   g++ -std=c++17 -O2 client.cpp -I INCLUDE -L LIB -l onnxruntime -o client
//   ./client generator.fp32.onnx label.pgm photo.ppm [instance.pgm]
//
// Label and instance maps are binary PGM files (8 or 16 bit), the photo is a PPM, so that no image library is needed;
// `magick label.png label.pgm` converts a greyscale PNG. What the graph expects is read from its own metadata.
#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

struct Map {
    int64_t height, width;
    std::vector<int32_t> ids;
};

Map read_pgm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    int64_t width = 0, height = 0, largest = 0;
    file >> magic >> width >> height >> largest;
    file.get();
    if (!file || magic != "P5") throw std::runtime_error(path + ": is no binary PGM file");
    Map map{height, width, std::vector<int32_t>(height * width)};
    for (auto& id : map.ids) {
        id = file.get();
        if (largest > 255) id = id << 8 | file.get();
    }
    if (!file) throw std::runtime_error(path + ": ends too early");
    return map;
}

// Nearest neighbour with the same pixels as Pillow's: the middle of each new pixel, added up step by step.
std::vector<int64_t> positions(int64_t from, int64_t to) {
    std::vector<int64_t> found;
    const double step = double(from) / double(to);
    double at = step * 0.5;
    for (int64_t i = 0; i < to; ++i, at += step) found.push_back(int64_t(at));
    return found;
}

std::vector<int32_t> resize(const Map& map, int64_t height, int64_t width) {
    std::vector<int32_t> found;
    const auto rows = positions(map.height, height), columns = positions(map.width, width);
    for (const auto row : rows)
        for (const auto column : columns) found.push_back(map.ids[row * map.width + column]);
    return found;
}

int run(int count, char** arguments) {
    if (count < 4) throw std::runtime_error("usage: client GRAPH label.pgm photo.ppm [instance.pgm]");
    Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "client");
    Ort::Session session(env, arguments[1], Ort::SessionOptions());
    Ort::AllocatorWithDefaultOptions allocator;
    const auto metadata = session.GetModelMetadata();
    const auto fact = [&](const char* name) {
        const auto text = metadata.LookupCustomMetadataMapAllocated(name, allocator);
        if (!text) throw std::runtime_error(std::string("the graph does not say its ") + name);
        return std::string(text.get());
    };
    const int64_t height = std::stoll(fact("spade.height")), width = std::stoll(fact("spade.width"));
    const int32_t ids = std::stoi(fact("spade.num_ids"));
    const std::string unknown = fact("spade.unknown_id");

    auto label = resize(read_pgm(arguments[2]), height, width);
    for (auto& id : label) {
        if (id == 255 && ids <= 255 && !unknown.empty()) id = std::stoi(unknown);
        if (id >= ids) throw std::runtime_error("id " + std::to_string(id) + " is not in 0.." + std::to_string(ids - 1));
    }
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const std::vector<int64_t> shape{1, height, width};
    std::vector<uint8_t> bytes(label.begin(), label.end());
    std::vector<int32_t> instance;
    std::vector<float> style;
    std::vector<std::string> names;
    std::vector<Ort::Value> values;
    for (size_t i = 0; i < session.GetInputCount(); ++i) {
        names.emplace_back(session.GetInputNameAllocated(i, allocator).get());
        const auto info = session.GetInputTypeInfo(i);
        const auto tensor = info.GetTensorTypeAndShapeInfo();
        if (names.back() == "label" && tensor.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8) {
            values.push_back(Ort::Value::CreateTensor(memory, bytes.data(), bytes.size(), shape.data(), shape.size()));
        } else if (names.back() == "label") {
            values.push_back(Ort::Value::CreateTensor(memory, label.data(), label.size(), shape.data(), shape.size()));
        } else if (names.back() == "instance") {  // edges are made in the graph
            if (count < 5) throw std::runtime_error("this model needs an instance map");
            instance = resize(read_pgm(arguments[4]), height, width);
            values.push_back(
                Ort::Value::CreateTensor(memory, instance.data(), instance.size(), shape.data(), shape.size()));
        } else {  // z: zeros are the mean style
            const std::vector<int64_t> length{1, tensor.GetShape()[1]};
            style.resize(length[1]);
            values.push_back(Ort::Value::CreateTensor(memory, style.data(), style.size(), length.data(), length.size()));
        }
    }
    std::vector<const char*> inputs;
    for (const auto& name : names) inputs.push_back(name.c_str());
    const char* output = "pixels";
    const auto made = session.Run(Ort::RunOptions(), inputs.data(), values.data(), values.size(), &output, 1);
    std::ofstream photo(arguments[3], std::ios::binary);
    photo << "P6\n" << width << " " << height << "\n255\n";
    photo.write(reinterpret_cast<const char*>(made[0].GetTensorData<uint8_t>()), height * width * 3);
    if (!photo) throw std::runtime_error(std::string(arguments[3]) + ": cannot be written");
    return 0;
}

int main(int count, char** arguments) {
    try {
        return run(count, arguments);
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << "\n";
        return 1;
    }
}

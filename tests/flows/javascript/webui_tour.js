// A tour with stable-diffusion-api, a published client of A1111's API. Prints what it saw as one JSON object.
import { ControlNetUnit, StableDiffusionApi } from "stable-diffusion-api"
import sharp from "sharp"

const [address, token] = process.argv.slice(2)
const api = new StableDiffusionApi({ baseUrl: address, timeout: 300000, defaultStepCount: 4 })
api.setAuth("anybody", token)

const small = { width: 64, height: 64, seed: 3 }
const plain = (color) => sharp({ create: { width: 64, height: 64, channels: 3, background: color } })
const size = async (image) => {
  const { width, height } = await image.metadata()
  return [width, height]
}
const seen = {}

seen.models = (await api.getSdModels()).map((model) => model.model_name)
seen.samplers = (await api.getSamplers()).length
for (const list of ["getUpscalers", "getHypernetworks", "getFaceRestorers", "getRealesrganModels", "getPromptStyles"]) {
  seen[list] = Array.isArray(await api[list]())
}
seen.cmdFlags = typeof (await api.getCmdFlags()).listen
await api.refreshCheckpoints()

const drawn = await api.txt2img({ prompt: "a yellow square", ...small, batch_size: 2 })
seen.txt2img = { sizes: await Promise.all(drawn.images.map(size)), seeds: JSON.parse(drawn.info).all_seeds }
const again = await api.img2img({ init_images: [drawn.image], prompt: "a red circle", ...small })
seen.img2img = await size(again.image)
const half = plain("black").composite([{ input: await plain("white").resize(32, 64).png().toBuffer(), left: 32, top: 0 }])
const inpainted = await api.img2img({
  init_images: [plain("#c81e1e")],
  mask_image: sharp(await half.png().toBuffer()),
  mask_blur: 0,
  inpaint_full_res: false,
  inpainting_fill: 1,
  prompt: "blue",
  ...small,
})
const { data, info } = await inpainted.image.removeAlpha().raw().toBuffer({ resolveWithObject: true })
seen.inpaint = { kept: [...data.subarray(0, 3)], channels: info.channels }

seen.extraSingle = await size((await api.extraSingle({ image: drawn.image, upscaler_1: "Lanczos", upscaling_resize: 2 })).image)
// Its extraBatch leaves out imageList, which A1111 refuses as we do.
const sent = await api.api.post("/sdapi/v1/png-info", { image: drawn.response.data.images[0] })
seen.pngInfo = sent.data.parameters.Seed
seen.pngInfoOfAnother = (await api.pngInfo(plain("red"))).info

seen.controlModels = await api.ControlNet.getModels()
seen.controlModules = (await api.ControlNet.getModules()).includes("canny")
const edges = await api.ControlNet.detect({ controlnet_module: "canny", controlnet_input_images: [drawn.image], controlnet_processor_res: 64 })
seen.detect = await size(edges.image)
const unit = new ControlNetUnit({ model: seen.controlModels[0], module: "canny", input_image: drawn.image, processor_res: 64 })
const controlled = await api.txt2img({ prompt: "a red circle", ...small, controlnet_units: [unit] })
seen.control = { pictures: controlled.images.length, told: JSON.parse(controlled.info).infotexts[0].includes("ControlNet 0") }

await api.setOptions({ CLIP_stop_at_last_layers: 2 })
seen.options = (await api.getOptions()).CLIP_stop_at_last_layers
await api.setOptions(await api.getOptions())
// Its setModel looks for a field of the list that A1111 has not.
await api.setOptions({ sd_model_checkpoint: (await api.getSdModels())[0].title })
seen.currentModel = await api.getCurrentModel()

const idle = await api.getProgress(true)
seen.idle = [idle.progress, idle.state.job_count]
const long = api.txt2img({ prompt: "a long one", ...small, steps: 100, n_iter: 40 })
let polled
do {
  await new Promise((resolve) => setTimeout(resolve, 100))
  polled = await api.getProgress(true)
} while (polled.state.job_count === 0 || polled.progress < 0.02)
seen.progress = [polled.progress > 0, polled.state.job_count, polled.state.sampling_steps]
await api.api.post("/sdapi/v1/interrupt")
seen.interrupted = (await long).images.length
await api.waitForReady(0.1)

console.log(JSON.stringify(seen))

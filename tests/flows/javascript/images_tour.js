// A tour with OpenAI's own client. Prints what it saw as one JSON object.
import OpenAI, { toFile } from "openai"
import sharp from "sharp"

const [address, token] = process.argv.slice(2)
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: token, maxRetries: 0, timeout: 120000 })
const size = async (data) => {
  const { width, height, format } = await sharp(data).metadata()
  return [width, height, format]
}
const decoded = (text) => Buffer.from(text, "base64")
const seen = {}

seen.models = (await client.models.list()).data.map((model) => model.id)
const model = seen.models[0]
const made = await client.images.generate({ model, prompt: "a yellow square", size: "64x64", n: 2, quality: "low" })
seen.generated = await Promise.all(made.data.map((image) => size(decoded(image.b64_json))))
seen.usage = made.usage
const linked = await client.images.generate({
  model, prompt: "a yellow square", size: "64x64", quality: "low", response_format: "url", output_format: "webp",
})
seen.linked = await size(Buffer.from(await (await fetch(linked.data[0].url)).arrayBuffer()))
const image = () => toFile(decoded(made.data[0].b64_json), "a.png", { type: "image/png" })
const hole = await sharp({ create: { width: 64, height: 64, channels: 4, background: { r: 0, g: 0, b: 0, alpha: 0 } } })
  .png()
  .toBuffer()
const mask = await toFile(hole, "mask.png", { type: "image/png" })
const edited = await client.images.edit({ model, image: await image(), mask, prompt: "a red circle", quality: "low" })
seen.edited = await size(decoded(edited.data[0].b64_json))

const stream = await client.images.generate({
  model, prompt: "a red circle", size: "128x128", quality: "high", stream: true, partial_images: 2,
})
seen.events = []
for await (const event of stream) seen.events.push([event.type, (await size(decoded(event.b64_json)))[2]])

try {
  await client.images.generate({ model: "gpt-image-1", prompt: "x" })
} catch (error) {
  seen.error = [error.constructor.name, error.status, error.code, error.param]
}
console.log(JSON.stringify(seen))

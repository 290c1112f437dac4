import flaxcls
def get_config():
    config = flaxcls.default_config()
    config.batch_size = 64
    config.num_epochs = 20
    config.model.name = 'resnet20'
    config.data.source = 'digits'
    config.data.image_size = 16
    return config
